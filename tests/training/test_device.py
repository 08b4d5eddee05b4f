import os
import platform
import subprocess
import sys

import pytest
import torch

from boneage.config import Runtime
from boneage.errors import ConfigError
from boneage.training.device import autocast, count_workers, pick_device


def test_a_device_that_is_not_there_is_an_error() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"cuda is not available here; found: .*cpu"):
            pick_device("cuda")


@pytest.mark.performance
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_training_on_a_cpu_reuses_the_memory_of_freed_tensors() -> None:
    code = """
import torch
from pathlib import Path
from boneage.training.device import keep_freed_memory

def kept_pages():
    before = int(Path("/proc/self/statm").read_text().split()[1])
    torch.ones(25_000_000)  # 100 MB, and freed at once
    return int(Path("/proc/self/statm").read_text().split()[1]) - before

by_default = kept_pages()
assert keep_freed_memory()
print(by_default, kept_pages())
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    by_default, kept = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in printed.split())
    assert by_default < 20e6
    assert kept > 90e6


def test_bf16_is_used_where_asked_for_and_not_on_a_cpu_by_default() -> None:
    device = torch.device("cpu")
    for precision, expected in (("bf16", True), ("fp32", False), ("auto", False)):
        with autocast(device, precision):
            assert torch.is_autocast_enabled("cpu") is expected


def test_images_are_read_by_the_number_of_workers_set_or_by_none_on_a_cpu() -> None:
    assert count_workers(Runtime(device="cpu", workers=3)) == 3
    assert count_workers(Runtime(device="cpu")) == 0
