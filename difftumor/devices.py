"""Where networks run."""

import platform

import torch

from difftumor.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """Return the device called "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: It is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"Device {name!r} is unknown: use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"Device {name!r} is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"There is no device {name!r} on this machine: use cpu or auto.")
    return device


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of the machine and its threads, to stand beside measured times."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.system()} {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
