"""Which meta-learner, with its own parameters: conditional, so that no sampler learns from values that did nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.meta import ClassEpisodes, GroupEpisodes

if TYPE_CHECKING:
    import optuna

_BY_STEPS = ["maml", "first_order_maml", "anil", "meta_sgd", "meta_curvature", "reptile"]
_OF_ANY_WAYS = ["maml", "first_order_maml", "anil"]


def meta(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`meta.learning_rate`, and `meta.learner` with its rate and steps, refinements (MAML) or penalty (ridge).

    Prototypes are drawn where classes are told apart. With `meta.engine: learn2learn`, ridge regression and the
    refinements are left out, since that library has neither. With `train_ways`, learners that take steps have a
    `zero_head`, those that can.
    """
    is_own = study.meta.engine != "learn2learn"
    has_train_ways = getattr(study.meta.episodes, "train_ways", None) is not None
    by_steps = (_OF_ANY_WAYS if is_own else []) if has_train_ways else _BY_STEPS
    kinds = [*by_steps, *(["protonet"] if _tells_classes(study) else []), *(["ridge"] if is_own else [])]
    kind = trial.suggest_categorical("meta.learner.kind", kinds)
    values: dict[str, Any] = {
        "meta.learner.kind": kind,
        "meta.learning_rate": trial.suggest_float("meta.learning_rate", 1e-4, 1e-2, log=True),
    }
    if kind in _BY_STEPS:
        values["meta.learner.rate"] = trial.suggest_float("meta.learner.rate", 1e-3, 0.5, log=True)
        if has_train_ways:
            values["meta.learner.zero_head"] = True
        values["meta.learner.steps"] = steps = trial.suggest_int("meta.learner.steps", 1, 5)
        if kind == "maml" and is_own:
            for name in ("per_step_rates", "multi_step_loss")[: 2 if steps > 1 else 1]:
                values[f"meta.learner.{name}"] = trial.suggest_categorical(f"meta.learner.{name}", [False, True])
    if kind == "ridge":
        values["meta.learner.penalty"] = trial.suggest_float("meta.learner.penalty", 1e-3, 1e2, log=True)
    return values


def _tells_classes(study: Study) -> bool:
    match study.meta.episodes:
        case ClassEpisodes():
            return True
        case GroupEpisodes(task=task):
            return study.tasks[task or next(iter(study.tasks))].kind != "regression"
        case _:
            return False
