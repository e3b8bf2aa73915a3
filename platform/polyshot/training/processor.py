"""How a process that trains uses the processor and its memory."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from polyshot.data.prepare import Prepared
from polyshot.models.multitask import build_model
from polyshot.study import Study

# Multiply-adds of a batch's forward pass that are worth a thread. Below it threads wait for each other longer than they
# work, tens of times longer where other processes have the cores.
_WORK_PER_THREAD = 5e7
_MEBIBYTE = 1 << 20


def use_processor(study: Study, prepared: Prepared | None = None) -> None:
    """Set torch's threads to `scale.threads`, by default one, and have freed memory kept for what comes next.

    Args:
        prepared: what a model is trained on that can keep more threads busy.
    """
    threads = study.scale.threads
    if threads is None and prepared is not None:
        model = build_model(study, prepared.inputs, prepared.targets)
        work = study.training.batch_size * sum(parameter.numel() for parameter in model.parameters())
        threads = max(1, min(os.cpu_count() or 1, int(work / _WORK_PER_THREAD)))
    torch.set_num_threads(threads or 1)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Up to a gibibyte of it, where the C library is glibc.

    What large tensors leave behind would go back to the system at once, and come again page by page with the next
    batch: a tenth of the time of a convolutional network, a quarter of a meta-update's.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    library.mallopt(trim_threshold, 1024 * _MEBIBYTE)
    library.mallopt(mmap_threshold, 32 * _MEBIBYTE)  # the largest that it takes
