"""Aligned-MTL: the gradients are replaced by the nearest orthogonal ones of equal length before they are summed.

    w = √s V diag(λ_k^{−1/2}) Vᵀ p  with G = V diag(λ_k) Vᵀ over its non-zero eigenvalues, p the task weights
Senushkin et al., "Independent Component Alignment for Multi-Task Learning" (CVPR 2023), algorithm 1; s is the least
non-zero eigenvalue (the paper's), their median, or their mean (called rmse in the authors' code).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from polyshot.balancing.base import GramianBalancer

_NOISE = float(np.finfo(np.float32).eps)  # the gradients are float32, whatever they are solved in


class AlignedMTL(GramianBalancer):
    """Gramian [T, T] → weights [T]."""

    def __init__(self, weights: Sequence[float], scale: Literal["min", "median", "rmse"] = "min"):
        super().__init__()
        self._preference = np.array(weights)
        self._scale = scale

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:  # noqa: ARG002
        eigenvalues, vectors = np.linalg.eigh(gramian)
        kept = eigenvalues > eigenvalues[-1] * len(gramian) * _NOISE
        eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
        match self._scale:
            case "min":
                scale = eigenvalues[0]
            case "median":
                scale = eigenvalues[(len(eigenvalues) - 1) // 2]
            case _:
                scale = eigenvalues.mean()
        return vectors @ (np.sqrt(scale / eigenvalues) * (vectors.T @ self._preference[tasks]))
