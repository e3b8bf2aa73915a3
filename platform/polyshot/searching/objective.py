"""What a search optimises: numbers of an epoch's metrics, which way is better, and what the chosen trial must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from polyshot.errors import RunError
from polyshot.study import Study
from polyshot.study.search import COSTS, IMPROVEMENT, RANK, WORST_IMPROVEMENT, Bound
from polyshot.training.baselines import Baseline, chosen_metrics
from polyshot.training.improvement import improvements, mean_improvement, relative_improvement
from polyshot.training.metrics import LOWER_IS_BETTER

COST = "cost/"  # what names of costs begin with, among the metrics of a trial

Direction = Literal["maximize", "minimize"]  # as Optuna calls them


@dataclass(frozen=True)
class Objective:
    """One number or several, on validation.

    Attributes:
        names: `improvement` (Δm over `baselines`), `worst_improvement`, `task/metric`, `task/improvement` or a cost.
        baselines: one `task/metric` for each task.
        bounds: constraints; a name like those above.
        rank_weights: of `names`, where the best trial is the one with the best weighted mean rank.
    """

    names: tuple[str, ...]
    baselines: dict[str, float]
    bounds: tuple[Bound, ...] = ()
    rank_weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, study: Study, baselines: Mapping[str, float]) -> Objective:
        """The study's objective.

        Args:
            baselines: the chosen `task/metric` of each single-task baseline, on validation.

        Raises:
            RunError: when an improvement is undefined because of a baseline.
        """
        search = study.search
        bounds = tuple(replace(bound, name=study.quantity(bound.name)) for bound in search.bounds)
        weights = tuple(study.task_weights.values()) if search.objectives == [RANK] else None
        objective = cls(tuple(study.objectives), dict(baselines), bounds, weights)
        for name, value in baselines.items():
            task, _, metric = name.rpartition("/")
            is_asked = objective._asks_for(IMPROVEMENT, WORST_IMPROVEMENT, f"{task}/{IMPROVEMENT}")
            if is_asked and not math.isfinite(relative_improvement(metric, value, value)):
                raise RunError(
                    f"search.objective: the improvement is undefined, since the single-task baseline's {name} on "
                    f"validation is {value:g}; choose another metric for the task, or a 'task/metric' to optimise"
                )
        return objective

    @property
    def is_one(self) -> bool:
        return len(self.names) == 1

    @property
    def directions(self) -> tuple[Direction, ...]:
        return tuple("minimize" if is_lower_better(name) else "maximize" for name in self.names)

    @property
    def logged_names(self) -> list[str]:
        """The objectives as metrics in MLflow: `objective`, or `objective/<name>` of several."""
        return ["objective"] if self.is_one else [f"objective/{name}" for name in self.names]

    @property
    def costs(self) -> list[str]:
        """The costs that are asked for."""
        return [name for name in COSTS if self._asks_for(name)]

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Of an epoch's `val/<task>/<metric>` and the trial's `cost/<name>`; NaN where a metric is undefined."""
        return [self._value(name, metrics) for name in self.names]

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """By each bound in words, as `Bound.violation`."""
        return {str(bound): bound.violation(self._value(bound.name, metrics)) for bound in self.bounds}

    def improvement(self, metrics: Mapping[str, float]) -> float | None:
        """Δm, where there are baselines to measure it by."""
        return self._value(IMPROVEMENT, metrics) if self.baselines else None

    def _asks_for(self, *names: str) -> bool:
        return any(name in names for name in (*self.names, *(bound.name for bound in self.bounds)))

    def _value(self, name: str, metrics: Mapping[str, float]) -> float:
        validation = {name.removeprefix("val/"): value for name, value in metrics.items()}
        task, _, metric = name.rpartition("/")
        if name in COSTS:
            return metrics[f"{COST}{name}"]
        if name == IMPROVEMENT:
            return mean_improvement(validation, self.baselines)
        if name == WORST_IMPROVEMENT:
            changes = improvements(validation, self.baselines).values()
            return math.nan if any(math.isnan(change) for change in changes) else min(changes)
        if metric == IMPROVEMENT:
            own = {name: value for name, value in self.baselines.items() if name.rpartition("/")[0] == task}
            return mean_improvement(validation, own)
        return validation[name]


def validation_baselines(study: Study, baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """The chosen `task/metric` of each single-task baseline, on validation."""
    values: dict[str, float] = {}
    for baseline in baselines.values():
        values |= chosen_metrics(study, baseline.validation)
    return values


def is_lower_better(name: str) -> bool:
    """Of one of `Objective.names`."""
    return name in COSTS or name.rpartition("/")[2] in LOWER_IS_BETTER
