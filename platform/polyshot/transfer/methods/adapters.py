"""Adapters: small residual bottlenecks between the layers of the source's encoder, which stays as it is.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (ICML 2019): h + W₂ σ(W₁ h), with W₂ = 0 at first, so
that training begins at the source's function.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.models.encoders import make_encoder
from polyshot.models.encoders.mlp import MLPEncoder
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.models.multitask import build_model
from polyshot.study.model import Model
from polyshot.study.transfer import Adapters
from polyshot.transfer.model import shared_tasks, take_heads, with_source_encoder
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, plainly_weighed, transferring, tuned


class Adapter(nn.Module):
    """[B, H] → [B, H]; the identity at first."""

    def __init__(self, outputs: int, width: int):
        super().__init__()
        self.down = nn.Linear(outputs, width)
        self.up = nn.Linear(width, outputs)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.up(torch.relu(self.down(features)))


def _adapted(adapter: nn.Module, _layer: nn.Module, _inputs: object, output: Any) -> Any:
    """A layer's output after its adapter; some layers of transformers give more, behind it."""
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)


class AdaptedEncoder(nn.Module):
    """[B, F] → [B, H]: an encoder that is not trained, with an adapter after each layer.

    One that is neither a perceptron nor a transformer is one layer.
    """

    def __init__(self, inputs: int | InputLayout, encoder: dict[str, Any], width: int):
        super().__init__()
        self.encoder = make_encoder(Model.model_validate({"encoder": encoder}).encoder, inputs).requires_grad_(False)
        self.outputs: int = self.encoder.outputs  # type: ignore[assignment]
        layers, hidden = self._layers_and_width()
        self.adapters = nn.ModuleList(Adapter(hidden, width) for _ in layers)
        for layer, adapter in zip(layers, self.adapters, strict=True):
            layer.register_forward_hook(partial(_adapted, adapter))

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features)

    def _layers_and_width(self) -> tuple[list[nn.Module], int]:
        if isinstance(self.encoder, MLPEncoder):
            return list(self.encoder.blocks), self.outputs
        if isinstance(self.encoder, TransformerEncoder):
            return self.encoder.layers[1:], self.encoder.hidden
        return [self.encoder], self.outputs

    def train(self, mode: bool = True) -> AdaptedEncoder:
        super().train(mode)
        self.encoder.eval()
        return self


def prepare(settings: Adapters, problem: Problem) -> Start:
    source, targets = problem.source, problem.targets
    options = {"encoder": source.encoder_section, "width": settings.width}
    kind = f"{AdaptedEncoder.__module__}:{AdaptedEncoder.__qualname__}"
    study = plainly_weighed(with_source_encoder(tuned(problem.study, settings), source))
    study = study.with_values({"model.encoder": {"kind": kind, "options": options}})
    model = transferring(build_model(study, problem.shared.inputs, targets))
    assert isinstance(model.encoder, AdaptedEncoder)
    model.encoder.encoder.load_state_dict(source.encoder.state_dict())
    take_heads(model.heads, targets, source, shared_tasks(targets, source))
    return Start(study, problem.shared, study, model)
