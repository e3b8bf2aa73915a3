"""How many CPU threads a training run uses in this process."""

from __future__ import annotations

import os

import torch

from polyshot.data.prepare import Prepared
from polyshot.models.multitask import build_model
from polyshot.study import Study

# Multiply-adds of a batch's forward pass that are worth a thread. Below it threads wait for each other longer than they
# work, tens of times longer where other processes have the cores.
_WORK_PER_THREAD = 5e7


def use_threads(study: Study, prepared: Prepared) -> None:
    """Set torch's threads to `scale.threads`, by default as many as the model and the batch can keep busy."""
    threads = study.scale.threads
    if threads is None:
        model = build_model(study, prepared.inputs, prepared.targets)
        work = study.training.batch_size * sum(parameter.numel() for parameter in model.parameters())
        threads = max(1, min(os.cpu_count() or 1, int(work / _WORK_PER_THREAD)))
    torch.set_num_threads(threads)
