"""How the model is optimised: the study's own optimiser with other settings, the batch size and the schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.training import SGD

if TYPE_CHECKING:
    import optuna


def optimisation(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """Learning rate and weight decay (logarithmic), batch size (a power of two from 32 to 1024), schedule, warm-up.

    SGD needs learning rates about thirty times those of AdamW, and has its momentum searched as well.
    """
    is_sgd = isinstance(study.training.optimiser, SGD)
    lowest, highest = (3e-3, 1.0) if is_sgd else (1e-4, 3e-2)
    values: dict[str, Any] = {
        "training.optimiser.learning_rate": trial.suggest_float(
            "training.optimiser.learning_rate", lowest, highest, log=True
        ),
        "training.optimiser.weight_decay": trial.suggest_float("training.optimiser.weight_decay", 1e-6, 1e-1, log=True),
        "training.batch_size": 2 ** trial.suggest_int("log2(training.batch_size)", 5, 10),
        "training.schedule.kind": trial.suggest_categorical("training.schedule.kind", ["constant", "cosine"]),
        "training.schedule.warmup": trial.suggest_float("training.schedule.warmup", 0, 0.2),
    }
    if is_sgd:
        values["training.optimiser.momentum"] = trial.suggest_float("training.optimiser.momentum", 0.5, 0.99)
    return values
