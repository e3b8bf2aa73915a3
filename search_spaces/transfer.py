"""Which method of transfer, with its own parameters: conditional, so that no sampler learns from what did nothing.

The values make up the method `searched` of a trial's study, beside those that the study names itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyshot.study import SEARCHED, Study

if TYPE_CHECKING:
    import optuna

Parameters = Callable[["optuna.Trial", str], dict[str, Any]]


def transfer(trial: optuna.Trial, study: Study) -> dict[str, Any]:  # noqa: ARG001 - the same for every study
    """`transfer.methods.searched`: its kind, its learning rate, and what else the kind has.

    LoRA, which needs a package, and meta-learnt starts, which need a run, can be named in `search.space`.
    """
    key = f"transfer.methods.{SEARCHED}"
    kind = trial.suggest_categorical(f"{key}.kind", list(_PARAMETERS))
    values = {f"{key}.kind": kind}
    if kind != "knn":
        values[f"{key}.learning_rate"] = trial.suggest_float(f"{key}.learning_rate", 1e-4, 3e-2, log=True)
    return values | _PARAMETERS[kind](trial, key)


def _nothing(_trial: optuna.Trial, _key: str) -> dict[str, Any]:
    return {}


def _fine_tuning(trial: optuna.Trial, key: str) -> dict[str, Any]:
    gradual = trial.suggest_categorical(f"{key}.unfreeze_every", [None, 1, 3])
    decay = trial.suggest_categorical(f"{key}.layer_decay", [1.0, 0.5, 0.2])
    return {f"{key}.unfreeze_every": gradual, f"{key}.layer_decay": decay}


def _knn(trial: optuna.Trial, key: str) -> dict[str, Any]:
    return {f"{key}.neighbours": trial.suggest_int(f"{key}.neighbours", 1, 30, log=True)}


def _l2_sp(trial: optuna.Trial, key: str) -> dict[str, Any]:
    return {f"{key}.strength": trial.suggest_float(f"{key}.strength", 1e-4, 1.0, log=True)}


def _adapters(trial: optuna.Trial, key: str) -> dict[str, Any]:
    return {f"{key}.width": trial.suggest_categorical(f"{key}.width", [4, 16, 64])}


def _distillation(trial: optuna.Trial, key: str) -> dict[str, Any]:
    return {
        f"{key}.{name}": trial.suggest_float(f"{key}.{name}", 0.1, 10.0, log=True) for name in ("logits", "features")
    }


def _selective(trial: optuna.Trial, key: str) -> dict[str, Any]:
    by = trial.suggest_categorical(f"{key}.by", ["pca", "mutual_information"])
    return {f"{key}.by": by, f"{key}.features": trial.suggest_categorical(f"{key}.features", [4, 16, 64])}


def _mixed(trial: optuna.Trial, key: str) -> dict[str, Any]:
    return {f"{key}.target_share": trial.suggest_float(f"{key}.target_share", 0.1, 0.9)}


def _aligned(trial: optuna.Trial, key: str) -> dict[str, Any]:
    strength = trial.suggest_float(f"{key}.strength", 1e-2, 10.0, log=True)
    return _mixed(trial, key) | {f"{key}.strength": strength}


_PARAMETERS: dict[str, Parameters] = {
    "fine_tuning": _fine_tuning,
    "linear_probe": _nothing,
    "knn": _knn,
    "l2_sp": _l2_sp,
    "adapters": _adapters,
    "distillation": _distillation,
    "feature_mapping": _nothing,
    "selective": _selective,
    "mixed": _mixed,
    "dann": _aligned,
    "deep_coral": _aligned,
    "mmd": _aligned,
    "gradient_guided": _mixed,
}
