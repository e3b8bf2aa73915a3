"""Meta-Curvature (Park & Oliva, NeurIPS 2019): gradients multiplied by meta-learnt matrices along each axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.stacked import Weights

CURVATURE = "curvature."


class MetaCurvature(GradientLearner):
    """θ ← θ − α M(∇L(θ)): M is the identity at first.

    A bias has a factor for each entry; a matrix [out, in] one matrix for each axis (eq. 7 with both); a convolution
    [out, in, h, w] a third one for the places of its kernel together.
    """

    def weights(self) -> Weights:
        weights = super().weights()
        for name in self.adapted_names():
            value = weights[name]
            if value.dim() == 1:
                weights[f"{CURVATURE}{name}.scale"] = torch.ones_like(value)
                continue
            axes = {"out": value.shape[0], "in": value.shape[1]}
            if value.dim() == 4:
                axes["place"] = value.shape[2] * value.shape[3]
            for axis, size in axes.items():
                weights[f"{CURVATURE}{name}.{axis}"] = torch.eye(size, dtype=value.dtype, device=value.device)
        return weights

    def update(self, weights: Weights, fast: Weights, gradients: Weights, step: int) -> Weights:
        del step
        return {
            name: value - self.rate * _transformed(weights, f"{CURVATURE}{name}.", gradients[name])
            for name, value in fast.items()
        }

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import meta_curvature

        return meta_curvature(self)


def _transformed(weights: Weights, prefix: str, gradient: Tensor) -> Tensor:
    """[T, ...] → [T, ...]."""
    if gradient.dim() == 2:
        return weights[f"{prefix}scale"] * gradient
    shape = gradient.shape
    gradient = gradient.flatten(3) if gradient.dim() == 5 else gradient.unsqueeze(3)  # [T, out, in, places]
    if len(shape) == 5:
        gradient = gradient @ weights[f"{prefix}place"].T
    gradient = torch.einsum("toip,ij->tojp", gradient, weights[f"{prefix}in"])
    return torch.einsum("toip,jo->tjip", gradient, weights[f"{prefix}out"]).reshape(shape)
