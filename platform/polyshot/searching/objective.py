"""What a search optimises: one number of an epoch's metrics, and whether more of it is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from polyshot.errors import RunError
from polyshot.study import Study
from polyshot.training.baselines import Baseline, chosen_metrics
from polyshot.training.improvement import mean_improvement, relative_improvement
from polyshot.training.metrics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Objective:
    """`improvement` (Δm over `baselines`, one `task/metric` for each task) or a single `task/metric`; on validation."""

    name: str
    baselines: dict[str, float]

    @classmethod
    def of(cls, study: Study, baselines: Mapping[str, Baseline]) -> Objective:
        """The study's objective.

        Raises:
            RunError: when Δm is undefined because of a baseline.
        """
        values: dict[str, float] = {}
        for baseline in baselines.values():
            values |= chosen_metrics(study, baseline.validation)
        if study.search.objective == "improvement":
            for name, value in values.items():
                if not math.isfinite(relative_improvement(name.rpartition("/")[2], value, value)):
                    raise RunError(
                        f"search.objective: the improvement is undefined, since the single-task baseline's {name} on "
                        f"validation is {value:g}; choose another metric for the task, or a 'task/metric' to optimise"
                    )
        return cls(study.search.objective, values)

    @property
    def direction(self) -> str:
        """As Optuna calls it: "maximize" or "minimize"."""
        return "minimize" if self.name.rpartition("/")[2] in LOWER_IS_BETTER else "maximize"

    def value(self, metrics: Mapping[str, float]) -> float:
        """The objective of an epoch's `val/<task>/<metric>`; NaN where a metric is undefined."""
        validation = {name.removeprefix("val/"): value for name, value in metrics.items()}
        if self.name == "improvement":
            return mean_improvement(validation, self.baselines)
        return validation[self.name]
