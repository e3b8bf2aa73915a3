"""Knowledge extraction: what a trained model computes for rows in any of its layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyshot.errors import RunError, did_you_mean
from polyshot.models.encoders.media import MediaEncoder
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.saved_model import SavedModel

REPRESENTATION = "representation"  # what the heads read
_ROWS_AT_ONCE = 16_384


def hidden_features(saved: SavedModel, table: pd.DataFrame, layer: str = REPRESENTATION) -> NDArray[np.float32]:
    """The outputs [N, H] of a layer for raw rows; where tasks have outputs of their own, these side by side.

    Args:
        layer: `representation`, or the name of a module of the model (see `layer_names`).

    Raises:
        RunError: when the model has no such layer, or it does not give a row for a row.
        DataError: when a feature's column is missing or holds what it did not hold in training.
    """
    rows = torch.from_numpy(saved.features.transform(table))
    encoders = [module for module in saved.model.modules() if isinstance(module, MediaEncoder)]
    at_once = min([_ROWS_AT_ONCE, *(encoder.rows_at_once for encoder in encoders)])  # so that none divides them further
    parts = [_outputs(saved, part, layer) for part in rows.split(at_once)]
    return torch.cat(parts).numpy()


def layer_names(saved: SavedModel) -> list[str]:
    """The layers that can be named."""
    return [REPRESENTATION, *(name for name, _ in saved.model.named_modules() if name)]


@torch.no_grad()
def _outputs(saved: SavedModel, rows: Tensor, layer: str) -> Tensor:
    if layer == REPRESENTATION:
        return _by_row(saved.model.heads.of_row(saved.model.representation(rows)), len(rows), layer)
    module = dict(saved.model.named_modules()).get(layer) if layer else None
    if module is None:
        names = layer_names(saved)
        raise RunError(
            f"--layer: the model has no layer '{layer}'; use one of {', '.join(names)}.{did_you_mean(layer, names)}"
        )
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append(output)

    hook = module.register_forward_hook(keep)
    try:
        saved.model(rows)
    finally:
        hook.remove()
    if not seen:
        raise RunError(f"--layer: '{layer}' gives no tensor when the model predicts; name another layer")
    if seen[-1].dim() == 3 and any(isinstance(other, TransformerEncoder) for other in saved.model.modules()):
        raise RunError(
            f"--layer: '{layer}' gives a vector for each token; use {REPRESENTATION}, which has one for each row"
        )
    return _by_row(seen[-1], len(rows), layer)


def _by_row(outputs: Tensor, rows: int, layer: str) -> Tensor:
    """[N, ...] or, of several copies of a layer, [T, N, ...] → [N, H]."""
    if outputs.shape[0] != rows and outputs.dim() == 3 and outputs.shape[1] == rows:
        outputs = outputs.transpose(0, 1)
    if outputs.shape[0] != rows:
        raise RunError(f"--layer: '{layer}' does not give a row for a row ({list(outputs.shape)}); name another layer")
    return outputs.reshape(rows, -1)
