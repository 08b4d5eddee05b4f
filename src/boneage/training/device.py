"""Where and how to compute: device, precision, processes that read images, memory."""

import ctypes
import os
import shutil
import sys
from contextlib import AbstractContextManager

import torch

from boneage.config import Runtime
from boneage.errors import ConfigError

COMPILERS = ("g++", "clang++", "cl")
"""Commands of which torch.compile needs one."""


def pick_device(name: str) -> torch.device:
    """Choose where to compute: CUDA, then an Apple GPU, then the CPU, or the one named.

    Raises:
        ConfigError: If the device named is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_there in available.items() if is_there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(
            f"device {name} is not available here; found: {there}. Pass one of those as --device."
        )
    return torch.device(name)


def require_compiler() -> None:
    """Check that a C++ compiler is installed.

    Raises:
        ConfigError: If there is none.
    """
    if not any(shutil.which(name) for name in COMPILERS):
        raise ConfigError(
            f"--compile needs a C++ compiler ({' or '.join(COMPILERS)}), and none was found. "
            "Install one, or pass --no-compile."
        )


def count_workers(runtime: Runtime) -> int:
    """Give the number of processes that read images: as set, else four on a GPU, none on a CPU."""
    if runtime.workers is not None:
        return runtime.workers
    # On a CPU, torch's threads use every core already and stall when one is taken away.
    is_on_cpu = pick_device(runtime.device).type == "cpu"
    return 0 if is_on_cpu else min(4, os.cpu_count() or 1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Give the context in which training computes: bf16 where asked for, or on CUDA with auto."""
    is_bf16 = precision == "bf16" or (
        precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed tensors for the next ones; no effect elsewhere.

    By default it gives large blocks back to the system, so that every step's tensors are mapped
    and their pages cleared anew, which takes as long as the arithmetic on a CPU.

    Returns:
        Whether the C library took the settings.

    Source: malloc.h, mallopt(3).
    """
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))
