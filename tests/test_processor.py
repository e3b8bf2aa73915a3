"""What a process that trains asks of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource

import torch

from polyshot.training.processor import keep_freed_memory

keep_freed_memory()


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(500_000) for _ in range(80)]  # 2 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(sum([faults() for _ in range(12)][6:]) / 6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    """Without, these are 38,000 pages in most processes, and none where something small lies on top of the heap."""
    ran = subprocess.run([sys.executable, "-c", PAGES], check=True, capture_output=True, text=True)
    assert float(ran.stdout) < 1000
