"""What a trial's model costs: its parameters, and the time it takes for one row.

Measured where the trial trains, before it does: neither changes while it learns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection

import torch
from torch import Tensor, nn

_WARM_UP, _PASSES = 10, 50


def model_costs(model: nn.Module, row: Tensor, names: Collection[str]) -> dict[str, float]:
    """Those of `parameters` and `latency_ms` (of `row` [1, F], the median of 50 passes) that `names` holds."""
    costs: dict[str, float] = {}
    if "parameters" in names:
        costs["parameters"] = float(sum(parameter.numel() for parameter in model.parameters()))
    if "latency_ms" in names:
        costs["latency_ms"] = _latency_ms(model, row)
    return costs


@torch.inference_mode()
def _latency_ms(model: nn.Module, row: Tensor) -> float:
    model.eval()
    seconds = []
    for number in range(_WARM_UP + _PASSES):
        started = time.perf_counter()
        model(row)
        if row.is_cuda:
            torch.cuda.synchronize(row.device)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)
