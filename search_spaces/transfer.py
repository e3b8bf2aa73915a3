"""Which method of transfer, with its own parameters: conditional, so that no sampler learns from what did nothing.

The values make up the method `searched` of a trial's study, beside those that the study names itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.transfer import SEARCHED

if TYPE_CHECKING:
    import optuna


def transfer(trial: optuna.Trial, study: Study) -> dict[str, Any]:  # noqa: ARG001 - the same for every study
    """`transfer.methods.searched`: its kind, its learning rate, and what else the kind has.

    A parameter bears its kind's name, since kinds mean different things by one key. LoRA, which needs a package, and
    meta-learnt starts, which need a run, are not drawn.
    """
    key = f"transfer.methods.{SEARCHED}"
    kind = trial.suggest_categorical(f"{key}.kind", list(_PARAMETERS))
    values = {"kind": kind} | _PARAMETERS[kind](trial, kind)
    if kind != "knn":
        values["learning_rate"] = trial.suggest_float(f"{key}.learning_rate", 1e-4, 3e-2, log=True)
    return {f"{key}.{name}": value for name, value in values.items()}


def _nothing(_trial: optuna.Trial, _kind: str) -> dict[str, Any]:
    return {}


def _fine_tuning(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {
        "unfreeze_every": trial.suggest_categorical(f"{kind}.unfreeze_every", [None, 1, 3]),
        "layer_decay": trial.suggest_categorical(f"{kind}.layer_decay", [1.0, 0.5, 0.2]),
    }


def _knn(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {"neighbours": trial.suggest_int(f"{kind}.neighbours", 1, 30, log=True)}


def _l2_sp(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {"strength": trial.suggest_float(f"{kind}.strength", 1e-4, 1.0, log=True)}


def _adapters(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {"width": trial.suggest_categorical(f"{kind}.width", [4, 16, 64])}


def _distillation(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {name: trial.suggest_float(f"{kind}.{name}", 0.1, 10.0, log=True) for name in ("logits", "features")}


def _selective(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {
        "by": trial.suggest_categorical(f"{kind}.by", ["pca", "mutual_information"]),
        "features": trial.suggest_categorical(f"{kind}.features", [4, 16, 64]),
        "layers": trial.suggest_categorical(f"{kind}.layers", ["last", "all", "best"]),
    }


def _mixed(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {"target_share": trial.suggest_float(f"{kind}.target_share", 0.1, 0.9)}


def _aligned(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return _mixed(trial, kind) | {"strength": trial.suggest_float(f"{kind}.strength", 1e-2, 10.0, log=True)}


_PARAMETERS: dict[str, Callable[[optuna.Trial, str], dict[str, Any]]] = {
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
