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
