"""Two regression tasks whose relation is a dial: the synthetic data of the paper on multi-gate mixture-of-experts.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts" (KDD 2018), section
3.2. Named as a study's data source, it needs no file:

    data: {source: "data_mmoe:table", arguments: {correlation: 0.5}}
"""

from __future__ import annotations

import numpy as np
import pandas as pd

# The paper leaves m, α and β open: m = 5 sines of rising frequency, each with another phase.
FREQUENCIES = np.arange(1.0, 6.0)
PHASES = np.arange(5.0)
NOISE = 0.1  # ε ~ N(0, 0.01)


def table(correlation: float, rows: int = 10_000, inputs: int = 100, scale: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Columns x0 … and the targets `first` and `second`.

    With orthogonal unit vectors u₁, u₂ and x ~ N(0, I): w₁ = c u₁, w₂ = c (p u₁ + √(1 − p²) u₂) and, for both tasks,
    y = wᵀx + Σᵢ sin(αᵢ wᵀx + βᵢ) + ε. So p is the cosine between the tasks' weights; the labels' correlation rises
    with it.

    Args:
        correlation: p, from −1 to 1.
        inputs: the dimension of x, at least 2.
        scale: c.

    Raises:
        ValueError: for p out of its range or fewer than two inputs.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation must be from -1 to 1, got {correlation}")
    if inputs < 2:
        raise ValueError(f"inputs must be at least 2, got {inputs}")
    random = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(random.standard_normal((inputs, 2)))  # columns u₁ and u₂
    mix = np.array([[1.0, correlation], [0.0, np.sqrt(1 - correlation**2)]])
    features = random.standard_normal((rows, inputs))
    linear = features @ (scale * directions @ mix)  # [rows, 2]
    labels = linear + np.sin(linear[..., None] * FREQUENCIES + PHASES).sum(-1)
    labels += NOISE * random.standard_normal(labels.shape)
    columns = {f"x{index}": features[:, index] for index in range(inputs)}
    return pd.DataFrame(columns | {"first": labels[:, 0], "second": labels[:, 1]})
