"""LEEP: the log-likelihood of the labels under what the source's predictions say of them.

Nguyen, Hassner, Seeger & Archambeau, "LEEP: A New Measure to Evaluate Transferability of Learned Representations" (ICML
2020), equation 2: (1/n) Σ_i log Σ_z P̂(y_i | z) θ(x_i)_z, with the source's probabilities θ and the empirical P̂(y, z).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def leep(probabilities: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """
    Args:
        probabilities: [N, Z], the source's, of its own classes.
        labels: [N], the target's class indices.
    """
    of_class = labels == np.unique(labels)[:, None]  # [Y, N]
    joint = of_class @ probabilities.astype(np.float64) / len(labels)  # [Y, Z]
    marginal = joint.sum(0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    expected = conditional @ probabilities.T  # [Y, N]
    return float(np.log(expected[of_class.argmax(0), np.arange(len(labels))]).mean())
