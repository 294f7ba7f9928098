"""Which device to compute on, and why."""

from __future__ import annotations

import dataclasses
import platform

import torch

from auralign.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Choice:
    """A device and the reason for it, in words for the user."""

    device: torch.device
    reason: str

    def __str__(self) -> str:
        return f"{self.device} ({self.reason})"


def pick(name: str = "auto") -> Choice:
    """Chooses a device: CUDA, else MPS, else CPU for ``auto``; any other name must be usable.

    Raises:
        UsageError: The named device does not exist here.

    >>> pick("cpu").reason
    'asked for'
    """
    if name == "auto":
        return _best()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        hint = "use auto, cpu, cuda, cuda:N or mps"
        raise UsageError(f"unknown device {name!r}", where="--device", hint=hint) from error
    problem = _problem(device)
    if problem:
        raise UsageError(
            f"the device {name!r} cannot be used", where="--device", why=problem, hint="use auto or cpu"
        )
    return Choice(device, "asked for")


def training_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Where to train: for ``auto`` this process's CUDA device, else the CPU.

    Apple's GPU has to be named, because training was never tried on it.

    Raises:
        UsageError: The named device does not exist here.
    """
    if name != "auto":
        return pick(name).device
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _best() -> Choice:
    if torch.cuda.is_available():
        return Choice(torch.device("cuda"), f"{torch.cuda.get_device_name(0)} is present")
    if torch.backends.mps.is_available():
        return Choice(torch.device("mps"), "no CUDA device, Apple's GPU is present")
    return Choice(torch.device("cpu"), "neither a CUDA device nor Apple's GPU is present")


def _problem(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        count = torch.cuda.device_count()
        return f"there are {count} CUDA devices" if (device.index or 0) >= count else ""
    if device.type == "mps":
        return "" if torch.backends.mps.is_available() else "torch sees no Apple GPU"
    return "auralign runs on cpu, cuda and mps"


def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: AMX or AVX-512 BF16, or Arm's BF16.

    Where it does not, torch still computes in bfloat16, more slowly than in float32.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return check is not None and bool(check())
    # torch's own check is content with AVX-512, which only imitates bfloat16
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(check is not None and bool(check()) for check in checks)
