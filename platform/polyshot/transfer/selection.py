"""Which of many features to keep: the principal components, or those that tell most about the labels.

Used by selective transfer on features in a model, and by `polyshot features` on features in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Projection:
    """x → (x − centre) @ matrix, from [N, H] to [N, K], of mean 0 and variance 1 on the rows that it was fitted to."""

    centre: Array  # [H]
    matrix: Array  # [H, K]

    def __call__(self, features: Array) -> Array:
        return (features - self.centre) @ self.matrix


def principal_components(features: Array, count: int, widths: Sequence[int] = ()) -> Projection:
    """The directions [H] of the largest variance of `features` [N, H]; at most `count` and as many as there are.

    Args:
        widths: of parts of H, each of which has the same share of the variance; by default all is one part.
    """
    from sklearn.decomposition import PCA

    features, widths = features.astype(np.float64), widths or [features.shape[1]]
    parts = np.split(features, np.cumsum(widths)[:-1], axis=1)
    spread = np.repeat([_spread(part) for part in parts], widths)
    fitted = PCA(min(count, *features.shape), svd_solver="full").fit(features / spread)
    scales = np.sqrt(fitted.explained_variance_)
    varies = scales > 1e-6 * max(scales[0], 1e-12)
    matrix = fitted.components_[varies].T / scales[varies] / spread[:, None]
    return Projection(features.mean(0), matrix)


def _spread(part: Array) -> float:
    """The root of the variance [] of all of a part's features; 1 where it is but rounding."""
    spread = float(np.sqrt(part.var(0).sum()))
    return spread if spread > 1e-6 * float(np.sqrt((part**2).mean(0).sum())) else 1.0


def most_informative(features: Array, ranking: NDArray[np.int64]) -> Projection:
    """The features of `ranking` [K], each standardised by `features` [N, H]."""
    spread = features.astype(np.float64).std(0)
    matrix = np.zeros((features.shape[1], len(ranking)))
    matrix[ranking, np.arange(len(ranking))] = 1 / np.maximum(spread[ranking], 1e-6)
    return Projection(features.astype(np.float64).mean(0), matrix)


def by_mutual_information(
    features: Array, labels: Iterable[tuple[Array, bool]], count: int, seed: int = 0
) -> NDArray[np.int64]:
    """The places of the `count` features with the most mutual information with the labels, the best first.

    Kraskov et al., "Estimating mutual information" (2004), by scikit-learn. With several tasks it is summed over them.

    Args:
        labels: of each task the labels [N], NaN where missing, and whether they are classes.
    """
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    total = np.zeros(features.shape[1])
    for values, are_classes in labels:
        known = ~np.isnan(values)
        estimate = mutual_info_classif if are_classes else mutual_info_regression
        neighbours = max(1, min(3, int(known.sum()) - 1))
        total += estimate(features[known], values[known], n_neighbors=neighbours, random_state=seed)
    varies = features.std(0) > 0
    return np.argsort(-np.where(varies, total, -1.0), kind="stable")[: min(count, max(1, int(varies.sum())))]
