"""The task weights λ, uniformly distributed over the simplex {λ ≥ 0, Σ λ = 1}.

Stick-breaking: with u_k uniform on [0, 1], task k of T takes the share 1 − (1 − u_k)^{1/(T−k)} of what the tasks before
it have left, and the last one takes the rest. Since 1 − (1 − u)^{1/m} has the distribution Beta(1, m), the weights are
Dirichlet(1, …, 1): uniform, and the same for every order of the tasks.

It is preferred to normalised exponentials (λ ∝ −log u), which are symmetric in their coordinates too, but need T
numbers for T − 1 degrees of freedom: whole curves of suggestions would mean the same weights, and a sampler that learns
from results (TPE, GP, CMA-ES) would spend trials on finding that out. Two tasks need a single number here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyshot.study import Study

if TYPE_CHECKING:
    import optuna


def task_weights(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`tasks.<task>.weight` for every task; nothing where there is only one."""
    *breaking, last = study.tasks
    if not breaking:
        return {}
    left = 1.0
    weights: dict[str, Any] = {}
    for index, task in enumerate(breaking):
        share = 1 - (1 - trial.suggest_float(f"share.{task}", 0, 1)) ** (1 / (len(breaking) - index))
        weights[f"tasks.{task}.weight"] = left * share
        left *= 1 - share
    return weights | {f"tasks.{last}.weight": left}


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """The parameters from which `task_weights` makes these weights (by task, in the study's order): its inverse."""
    *breaking, _ = weights
    left = sum(weights.values())
    parameters = {}
    for index, task in enumerate(breaking):
        share = min(1.0, weights[task] / left) if left > 0 else 0.0
        parameters[f"share.{task}"] = 1 - (1 - share) ** (len(breaking) - index)
        left -= weights[task]
    return parameters
