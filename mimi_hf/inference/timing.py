"""What every measurement of speed needs: a device whose queue is empty, and a record of what ran where."""

import os
import platform
import time

import torch

from mimi_hf.utils.machine import installed_version, processor_name

PACKAGES = ("mimi_hf", "torch", "transformers", "moshi", "rustymimi", "numpy")


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done all that is queued on it; on other devices nothing is queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Sums the seconds of `with` blocks, each until the device has done its work.

    seconds: of all blocks so far.

    Example:
        >>> watch = Stopwatch("cpu")
        >>> with watch:
        ...     total = sum(range(1000))
        >>> watch.seconds > 0
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> "Stopwatch":
        synchronize(self.device)
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._begin


def describe_machine(device: torch.device | str = "cpu") -> dict:
    """What ran where: processor, threads, versions, date, and the settings of malloc, which change figures a lot."""
    device = torch.device(device)
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "malloc": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "date": time.strftime("%Y-%m-%d"),
    }
