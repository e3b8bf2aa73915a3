"""The sharing scheme, with its own parameters where that scheme is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.model import MLP

if TYPE_CHECKING:
    import optuna

_ANY_ENCODER = ["hard", "soft", "mmoe", "cgc"]
_LAYERED_ENCODER = ["cross_stitch", "hierarchical", "attention", "ple"]


def sharing(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`model.sharing.kind` and that scheme's strength, share, depths, experts or levels; nothing for a single task.

    An encoder of the user's may have no layers, so it is given the schemes that need none. Depths are drawn as
    fractions of the trial's own encoder: list this space after the one that searches `model.encoder.depth`.
    """
    if len(study.tasks) == 1:
        return {}
    encoder = study.model.encoder
    kinds = [*_ANY_ENCODER, *_LAYERED_ENCODER] if isinstance(encoder, MLP) else _ANY_ENCODER
    kind = trial.suggest_categorical("model.sharing.kind", kinds)
    values: dict[str, Any] = {"model.sharing.kind": kind}
    match kind:
        case "soft":
            values["model.sharing.strength"] = trial.suggest_float("model.sharing.strength", 1e-6, 1.0, log=True)
        case "cross_stitch":
            values["model.sharing.own_share"] = trial.suggest_float("model.sharing.own_share", 0.5, 1.0)
        case "mmoe":
            values["model.sharing.experts"] = trial.suggest_int("model.sharing.experts", 2, 8)
        case "cgc" | "ple":
            for experts in ("shared_experts", "task_experts"):
                values[f"model.sharing.{experts}"] = trial.suggest_int(f"model.sharing.{experts}", 1, 3)
    if isinstance(encoder, MLP):
        depth: int = trial.params.get("model.encoder.depth", encoder.depth)
        if kind == "ple":
            levels = trial.suggest_int("model.sharing.levels", 2, 3)
            values["model.sharing.levels"] = min(levels, depth)
        if kind == "hierarchical":
            for task in study.tasks:
                fraction = trial.suggest_float(f"relative depth.{task}", 0, 1)
                values[f"model.sharing.depths.{task}"] = min(depth, 1 + int(fraction * depth))
    return values
