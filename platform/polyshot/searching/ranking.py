"""Which trial of a search is the best one: constraints first, then Pareto fronts, then one of the front.

Called while a search runs, to keep the best trials' checkpoints, and when it has ended. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from scipy.stats import rankdata

from polyshot.searching.objective import Objective
from polyshot.searching.searcher import was_stopped


def ranked(trials: Iterable[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    """The trials that have a value, the best first.

    Those that trained to their end and hold all constraints come before those that were stopped, and these before those
    that hold not all (the least violation first). Among the former, of one objective, the better value is first. Of
    several, trials that no other one beats in all objectives (the Pareto front) are first, then those that only these
    beat, and so on; and of one front the trial that is nearest to the best of every objective, or with
    `objective.rank_weights` the one with the best weighted mean rank.
    """
    valued = _valued(trials)
    good = _good(valued)
    stopped = [trial for trial in valued if is_feasible(trial) and was_stopped(trial)]
    rest = [trial for trial in valued if not is_feasible(trial)]
    return [
        *_ordered(good, objective),
        *_ordered(stopped, objective),
        *sorted(rest, key=lambda trial: (violation(trial), trial.number)),
    ]


def pareto_front(trials: Iterable[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    """Of the trials that trained to their end and hold all constraints, those that no other one beats; as `ranked`."""
    good = _good(_valued(trials))
    if not good:
        return []
    on_front = {trial.number for trial, front in zip(good, _fronts(_gains(good, objective)), strict=True) if not front}
    return [trial for trial in _ordered(good, objective) if trial.number in on_front]


def _valued(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.is_finished() and trial.values is not None]


def _good(valued: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that trained to their end and hold all constraints."""
    return [trial for trial in valued if is_feasible(trial) and not was_stopped(trial)]


def is_feasible(trial: FrozenTrial) -> bool:
    return violation(trial) == 0


def violation(trial: FrozenTrial) -> float:
    """By how much constraints are broken, in sum."""
    return sum(max(0.0, value) for value in trial.constraints.values())


def chosen_words(front: Sequence[FrozenTrial], objective: Objective) -> str:
    """How the best trial was chosen."""
    if not front:
        return "no trial that trained to its end holds all constraints; this one comes nearest"
    if objective.is_one:
        return f"the best {objective.names[0]} on validation"
    of = f"of the {len(front)} that no other trial beats in all objectives"
    if len(front) == 1:
        return "the only trial that no other one beats in all objectives"
    if objective.rank_weights:
        return f"the best mean rank on validation, tasks weighed by their weight, {of}"
    return f"the nearest to the best of every objective on validation, {of}"


def fronts(gains: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of points [N, K], the more the better, the number of their front [N].

    It is 0 for points that no other one dominates, 1 for those that only these dominate, and so on. A point dominates
    another one that it is not worse than in any coordinate and better than in one.
    """
    no_worse = np.all(gains[:, None] >= gains[None], axis=2)  # [i, j]: i is no worse than j
    dominates = no_worse & ~no_worse.T
    order = np.full(len(gains), -1)
    front = 0
    while (left := order < 0).any():
        order[left & ~np.any(dominates[left], axis=0)] = front
        front += 1
    return order


def _fronts(gains: NDArray[np.float64]) -> NDArray[np.int64]:
    """As `fronts`; of one objective by sorting, since each value is then a front of its own."""
    return rankdata(-gains[:, 0], method="dense").astype(np.int64) - 1 if gains.shape[1] == 1 else fronts(gains)


def _gains(trials: Sequence[FrozenTrial], objective: Objective) -> NDArray[np.float64]:
    """[N, K]: the values, turned so that more is better."""
    signs = [1.0 if direction == "maximize" else -1.0 for direction in objective.directions]
    return np.array([trial.values for trial in trials], dtype=np.float64) * signs


def _ordered(trials: Sequence[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    if not trials:
        return []
    gains = _gains(trials, objective)
    order, distance = _fronts(gains), np.zeros(len(trials))
    if objective.rank_weights:
        distance = rankdata(-gains, axis=0) @ np.array(objective.rank_weights)
    elif not objective.is_one:
        for front in range(order.max() + 1):
            distance[order == front] = _from_ideal(gains[order == front])
    places = sorted(range(len(trials)), key=lambda place: (order[place], distance[place], trials[place].number))
    return [trials[place] for place in places]


def _from_ideal(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, K] → [N], the Euclidean distance to the best of every coordinate, whose range on this front is 1 (Zeleny,
    "Multiple Criteria Decision Making", 1982: compromise programming).
    """
    best, spread = gains.max(0), np.ptp(gains, axis=0)
    return np.linalg.norm((best - gains) / np.where(spread > 0, spread, 1.0), axis=1)
