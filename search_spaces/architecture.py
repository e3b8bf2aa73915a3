"""The size and the parts of the encoder `mlp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.errors import Problem, StudyError
from polyshot.study import Study
from polyshot.study.model import MLP

if TYPE_CHECKING:
    import optuna


def architecture(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """Width (a power of two from 16 to 512), depth, dropout, activation and normalisation.

    Raises:
        StudyError: when the study's encoder is another one.
    """
    encoder = study.model.encoder
    if not isinstance(encoder, MLP):
        message = (
            f"'architecture' searches the encoder 'mlp' and this study has '{encoder.kind}'; "
            "list distributions of the keys of model.encoder in search.space, or name a space of your own"
        )
        raise StudyError([Problem("search.spaces", message)])
    return {
        "model.encoder.width": 2 ** trial.suggest_int("log2(model.encoder.width)", 4, 9),
        "model.encoder.depth": trial.suggest_int("model.encoder.depth", 1, 4),
        "model.encoder.dropout": trial.suggest_float("model.encoder.dropout", 0, 0.5),
        "model.encoder.activation": trial.suggest_categorical("model.encoder.activation", ["relu", "gelu", "silu"]),
        "model.encoder.normalisation": trial.suggest_categorical(
            "model.encoder.normalisation", ["none", "batch", "layer"]
        ),
    }
