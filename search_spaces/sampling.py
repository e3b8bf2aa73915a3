"""How batches are drawn from the tasks: jointly or one task at a time, with the parameters of what is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.agreement import ONE_BY_ONE, WHOLE_BATCHES

if TYPE_CHECKING:
    import optuna


def sampling(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`training.sampling`; nothing for a single task, which has no other to share batches with.

    A balancer that compares tasks within a batch gets batches of several: list this space after the one that searches
    the balancer. Round robin is left out, since it draws as uniform sampling does, in a fixed order.
    """
    if len(study.tasks) == 1:
        return {}
    key = "training.sampling"
    if trial.params.get("balance.kind", study.balance.kind) in ONE_BY_ONE:
        kinds = [*WHOLE_BATCHES, "proportional", "temperature", "uniform", "weighted", "dynamic"]
        kind = trial.suggest_categorical(f"{key}.kind", kinds)
    else:
        kind = trial.suggest_categorical(f"{key}.kind of whole batches", list(WHOLE_BATCHES))
    values: dict[str, Any] = {f"{key}.kind": kind}
    match kind:
        case "temperature":
            values[f"{key}.temperature"] = trial.suggest_float(f"{key}.temperature", 1, 20, log=True)
        case "weighted":
            for task in study.tasks:
                name = f"tasks.{task}.sampling_weight"
                values[name] = trial.suggest_float(name, 0.1, 10, log=True)
        case "dynamic":
            values[f"{key}.strength"] = trial.suggest_float(f"{key}.strength", 0.1, 3)
    return values
