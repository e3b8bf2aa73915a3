"""LogME: the logarithm of the maximum evidence of a linear model of the labels on features.

You, Liu, Wang & Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (ICML 2021). With
weights w ~ N(0, α⁻¹ I) and labels y ~ N(F w, β⁻¹ I), the evidence p(y | F) is maximised over α and β by MacKay's fixed
point, α = γ / ‖m‖² and β = (n − γ) / ‖F m − y‖², in the singular values of F; it is given per row.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_ITERATIONS = 100
_TOLERANCE = 1e-6  # relative change of α / β at which the fixed point is taken for found


def logme(features: Array, labels: Array, are_classes: bool) -> float:
    """The evidence per row.

    Args:
        features: [N, H].
        labels: [N]; class indices, of which each class is a target of 0 and 1 and the mean of the evidences is taken,
            or values.
    """
    features = features.astype(np.float64)
    targets = [(labels == c).astype(np.float64) for c in np.unique(labels)] if are_classes else [labels.astype(float)]
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return float(np.mean([_evidence(left, singular**2, target, features.shape[1]) for target in targets]))


def _evidence(left: Array, squares: Array, labels: Array, width: int) -> float:
    """Of one target [N], by the left singular vectors [N, K] and the squared singular values [K] of the features."""
    rows = len(labels)
    along = (left.T @ labels) ** 2  # [K]
    outside = max(float(labels @ labels - along.sum()), 0.0)  # what no weights can explain
    alpha = beta = 1.0
    for _ in range(_ITERATIONS):
        ratio = alpha / beta
        gamma, length, error = _moments(squares, along, outside, ratio)
        alpha, beta = gamma / max(length, 1e-12), (rows - gamma) / max(error, 1e-12)
        if abs(alpha / beta - ratio) <= _TOLERANCE * ratio:
            break
    _, length, error = _moments(squares, along, outside, alpha / beta)
    log_determinant = np.log(alpha + beta * squares).sum() + (width - len(squares)) * math.log(alpha)
    log_evidence = (
        rows * math.log(beta)
        + width * math.log(alpha)
        - rows * math.log(2 * math.pi)
        - beta * error
        - alpha * length
        - log_determinant
    ) / 2
    return float(log_evidence / rows)


def _moments(squares: Array, along: Array, outside: float, ratio: float) -> tuple[float, float, float]:
    """γ, ‖m‖² and ‖F m − y‖² of the posterior mean m, for α / β = `ratio`."""
    gamma = (squares / (squares + ratio)).sum()
    length = (squares * along / (squares + ratio) ** 2).sum()
    error = (along * (ratio / (squares + ratio)) ** 2).sum() + outside
    return float(gamma), float(length), float(error)
