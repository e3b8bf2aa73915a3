"""Did learning the tasks together help? Each task's metric against its single-task baseline, and Δm over tasks.

Δm = mean over tasks of ±(M_mtl − M_stl) / |M_stl|, positive when better (Maninis et al., CVPR 2019, eq. 4; Vandenhende
et al., TPAMI 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from polyshot.training.metrics import LOWER_IS_BETTER


def relative_improvement(metric: str, value: float, baseline: float) -> float:
    """The change of `metric` against `baseline` as a fraction of it, positive when better; NaN where undefined."""
    if not (math.isfinite(value) and math.isfinite(baseline)) or baseline == 0:
        return math.nan
    change = (value - baseline) / abs(baseline)
    return -change if metric in LOWER_IS_BETTER else change


def relative_improvements(
    metric: str, values: NDArray[np.floating], baselines: NDArray[np.floating]
) -> NDArray[np.floating]:
    """`relative_improvement` of each of many values [R] against the baseline of the same place."""
    defined = np.isfinite(values) & np.isfinite(baselines) & (baselines != 0)
    changes = np.divide(values - baselines, np.abs(baselines), out=np.full(len(values), np.nan), where=defined)
    return -changes if metric in LOWER_IS_BETTER else changes


def improvements(values: Mapping[str, float], baselines: Mapping[str, float]) -> dict[str, float]:
    """The relative improvement of each `task/metric` that stands in `baselines`."""
    return {
        name: relative_improvement(name.rpartition("/")[2], values[name], baseline)
        for name, baseline in baselines.items()
    }


def mean_improvement(values: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """Δm: the mean over `baselines`, one `task/metric` for each task; NaN when any task's is undefined."""
    changes = improvements(values, baselines)
    return sum(changes.values()) / len(changes)
