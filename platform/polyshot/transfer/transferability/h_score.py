"""H-score: how far the classes' mean features lie apart, in the metric of the features' own covariance.

Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning" (ICIP 2019), definition 2:
tr(cov(f)⁻¹ cov(E[f | y])), with the pseudo-inverse where features depend on each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def h_score(features: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """
    Args:
        features: [N, H].
        labels: [N], class indices.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    means = np.zeros_like(centred)
    for c in np.unique(labels):
        means[labels == c] = centred[labels == c].mean(0)
    inverse = np.linalg.pinv(centred.T @ centred, rcond=1e-10, hermitian=True)
    return float(np.einsum("hk,nk,nh->", inverse, means, means, optimize=True))
