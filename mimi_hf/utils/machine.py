"""The machine at hand: its processor, cores and memory, and the versions of packages on it."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def usable_cores() -> int:
    """The number of cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def usable_memory() -> int:
    """The bytes of memory that this machine has, or that this container may take; 16 GiB where nothing tells."""
    memory = 16 * 2**30
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ValueError, OSError):
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def processor_name() -> str:
    """The name of the processor, with its family and model where Linux tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines if ":" in line}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def installed_version(package: str) -> str | None:
    """The version of an installed package; `None` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
