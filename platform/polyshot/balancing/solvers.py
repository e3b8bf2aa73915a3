"""Small exact problems over a Gramian G [T, T], in float64: what the Gramian methods have in common.

All work on the correlations Ĝ = D G D, D = diag(G)^{−1/2}, so that tasks whose gradients differ by many orders of
magnitude are no harder than others, and what is solved for is scaled back. NumPy beats torch by far at this size.
"""

from __future__ import annotations

import numpy as np

# Gramians come from float32 Jacobians: smaller eigenvalues of the correlations are noise.
_FLOOR = 1e-7
_NOISE = 1e-6
_MOST_ITERATIONS = 100


def correlations(gramian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """G [T, T] with a positive diagonal → the gradients' cosines Ĝ [T, T] and their norms [T]."""
    norms = np.sqrt(gramian.diagonal())
    return gramian / np.outer(norms, norms), norms


def lifted(matrix: np.ndarray) -> np.ndarray:
    """`matrix` [T, T], with its diagonal raised just as far as it takes for every eigenvalue to be 1e-7 or more."""
    try:
        np.linalg.cholesky(matrix - _FLOOR * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return matrix + (_FLOOR - np.linalg.eigvalsh(matrix)[0]) * np.eye(len(matrix))
    return matrix


def least_norm_solution(cosines: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Ĝ⁺ b for correlations Ĝ [T, T] and b [T], where eigenvalues below 1e-6 of the largest are noise."""
    try:
        np.linalg.cholesky(cosines - _NOISE * len(cosines) * np.eye(len(cosines)))
    except np.linalg.LinAlgError:
        return np.linalg.pinv(cosines, rcond=_NOISE, hermitian=True) @ right
    return np.linalg.solve(cosines, right)  # of full rank: a twentieth of the time


def nonnegative_minimum(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Argmin ½ xᵀQx − qᵀx over x ≥ 0, for Q [T, T] positive definite and each row q of `linear` [K, T] → [K, T].

    Block principal pivoting (Kim & Park, "Fast Nonnegative Matrix Factorization: An Active-Set-like Method and
    Comparisons", SIAM J. Sci. Comput. 2011) with all K problems at once: exact, as it ends at a point that meets the
    optimality conditions.
    """
    size = linear.shape[1]
    scales = np.abs(linear).max(axis=1, keepdims=True)
    q = linear / np.where(scales == 0, 1, scales)
    free = q > 0  # [K, T]
    fewest = np.full(len(q), size + 1)
    patience = np.full(len(q), 3)
    eye = np.eye(size)
    x = np.zeros_like(q)
    left = np.arange(len(q))  # the problems that are not solved yet
    for _ in range(_MOST_ITERATIONS + 10 * size):
        now = free[left]
        either, both = now[:, :, None] | now[:, None, :], now[:, :, None] & now[:, None, :]
        systems = np.where(both, matrix, np.where(either, 0.0, eye))
        found = np.linalg.solve(systems, np.where(now, q[left], 0.0)[:, :, None])[:, :, 0]
        x[left] = found
        tolerance = 1e-12 * np.maximum(1, np.abs(found).max(axis=1, keepdims=True))
        wrong = np.where(now, found, found @ matrix - q[left]) < -tolerance
        counts = wrong.sum(axis=1)
        unsolved = counts > 0
        if not unsolved.any():
            break
        left, wrong, counts = left[unsolved], wrong[unsolved], counts[unsolved]
        better = counts < fewest[left]
        patience[left] = np.where(better, 3, patience[left] - 1)
        fewest[left] = np.minimum(counts, fewest[left])
        # A block that does not help shrinks to its last member: this rule cannot cycle.
        stuck = patience[left] < 0
        if stuck.any():
            last = size - 1 - wrong[stuck, ::-1].argmax(axis=1)
            wrong[stuck] = eye[last] > 0
        free[left] ^= wrong
    return np.maximum(x, 0) * scales


def minimum_norm_point(gramian: np.ndarray) -> np.ndarray:
    """Argmin ‖Jᵀw‖ over the simplex {w ≥ 0, Σ w = 1}, from G [T, T] → [T].

    The minimum of ½ wᵀGw + ½ κ (Σ w − 1)² over w ≥ 0 meets the same optimality conditions, up to its length, for every
    κ > 0: one problem with bounds only, and no approximation.
    """
    cosines, norms = correlations(gramian)
    ones = 1 / norms
    ones /= np.linalg.norm(ones)
    weights = nonnegative_minimum(lifted(cosines + np.outer(ones, ones)), ones[None])[0] / norms
    return weights / weights.sum()


def dual_cone_projections(gramian: np.ndarray, preferences: np.ndarray) -> np.ndarray:
    """For each row u of `preferences` [K, T] the v with Jᵀv the projection of Jᵀu on {d : J d ≥ 0} → [K, T].

    v = argmin vᵀGv over v ≥ u (Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, proposition
    1).
    """
    cosines, norms = correlations(gramian)
    lengths = preferences * norms
    conflicts = -lengths @ cosines
    if not (conflicts > 0).any():
        return preferences
    return (lengths + nonnegative_minimum(lifted(cosines), conflicts)) / norms


def inverse_power_point(gramian: np.ndarray, power: float) -> np.ndarray:
    """The w > 0 [T] with G w = w^{−power}, for G [T, T].

    It is the minimum of the strictly convex ½ wᵀGw − Σ ∫ w^{−power}, found by Newton's method; a step is halved as
    long as the function rises steeply at its end.
    """
    cosines, norms = correlations(gramian)
    cosines = lifted(cosines)
    constants = norms ** (power - 1)
    scale = np.exp(np.log(constants).mean())
    constants = constants / scale
    y = constants ** (1 / (1 + power))  # exact when no two gradients have anything in common
    y *= ((y ** (1 - power) @ constants) / (y @ cosines @ y)) ** (1 / (1 + power))  # and the best of its length
    push = constants * y**-power
    gradient = cosines @ y - push
    least = np.inf
    for _ in range(_MOST_ITERATIONS):
        hessian = cosines.copy()
        hessian.flat[:: len(y) + 1] += power * push / y
        step = np.linalg.solve(hessian, -gradient)
        decrement = -float(gradient @ step)  # twice what is left to gain, near the minimum
        if decrement <= 1e-24 or (decrement < 1e-8 and decrement >= least):  # as near as float64 gets
            break
        least = min(least, decrement)
        length = min(1.0, 0.95 / max((-step / y).max(), 1e-300))
        while True:
            candidate = y + length * step
            push = constants * candidate**-power
            gradient = cosines @ candidate - push
            if decrement < 1e-8 or gradient @ step <= 0.5 * decrement or length < 1e-12:
                break
            length /= 2
        y = candidate
    return y * scale ** (1 / (1 + power)) / norms


def worst_improvement_point(gramian: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """The w [T] whose d = Jᵀw maximises min_t g_t·d over the ball ‖d − d₀‖ ≤ `radius` ‖d₀‖ around d₀ = Jᵀ`centre` [T].

    {d : J d ≥ μ} moves away from d₀ as μ grows; its nearest point is d₀ + Jᵀx with x(μ) ≥ 0 from one small problem, and
    what is sought is the μ at which it stands on the sphere. While the set of positive x stays the same, ‖Jᵀx(μ)‖² is
    a parabola in μ, whose root is the next guess; bisection steps in where it fails.
    """
    cosines, norms = correlations(gramian)
    scaled = centre * norms
    squared_radius = radius**2 * float(scaled @ cosines @ scaled)
    if squared_radius <= (_FLOOR * radius * np.abs(scaled).sum()) ** 2:  # d₀ is zero but for noise
        return centre
    cosines = lifted(cosines)
    ones = 1 / norms
    start = cosines @ scaled
    low = float((start * norms).min())
    high = mu = float(((start + np.sqrt(squared_radius)) * norms).min())
    width = high - low
    x = np.zeros_like(centre)
    for _ in range(_MOST_ITERATIONS):
        x = nonnegative_minimum(cosines, (mu * ones - start)[None])[0]
        squared = float(x @ cosines @ x)
        low, high = (low, mu) if squared > squared_radius else (mu, high)
        free = x > 0
        by_ones, by_start = np.linalg.solve(cosines[np.ix_(free, free)], np.stack([ones[free], start[free]], 1)).T
        a, b, e = ones[free] @ by_ones, ones[free] @ by_start, start[free] @ by_start
        discriminant = b * b - a * (e - squared_radius)
        root = (b + np.sqrt(discriminant)) / a if discriminant >= 0 else low
        if abs(root - mu) <= 1e-10 * (abs(mu) + abs(high - low)) or high - low <= 1e-10 * width:
            break
        mu = root if low < root < high else (low + high) / 2
    return centre + x / norms
