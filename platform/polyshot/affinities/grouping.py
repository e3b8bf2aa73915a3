"""Which tasks to learn together: the groups whose predicted performance is best, within a budget of networks.

As in Standley et al. (ICML 2020) and Fifty et al. (NeurIPS 2021): a network that is trained on the tasks G is predicted
to give task b ∈ G the mean of its pairwise affinities,

    s(b | G) = 1 / (|G| − 1) Σ_{a ∈ G, a ≠ b} Z_{a→b},    s(b | {b}) = 0,

networks may overlap, each task is served by the network that is best for it, and Σ_b s(b) is maximised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

EXACT_TASKS = 10  # up to which every grouping is considered
_SAME = 1e-12  # sums that differ by less are equal: the cheaper groups are taken
_STARTS = 8  # of the heuristic

Value = Callable[[frozenset[int]], float]


@dataclass(frozen=True)
class Group:
    """One network.

    Attributes:
        tasks: what it is trained on.
        serves: the tasks among them that it predicts; the others are there to help.
        predicted: of each task in `serves`, the predicted improvement over learning alone, in the affinity's own unit.
    """

    tasks: tuple[int, ...]
    serves: tuple[int, ...]
    predicted: tuple[float, ...]


def best_groups(affinity: NDArray[np.float64], networks: int) -> list[Group]:
    """The best grouping into at most `networks` networks: exact for up to ten tasks, a good one for more.

    Of groupings that are equally good, one with fewer networks, and helpers only where they help.

    Args:
        affinity: [T, T], row a, column b is what learning a does for b; 0 is as good as alone. The diagonal is not
            looked at, and what is not known (NaN) counts as 0.
    """
    affinity = np.nan_to_num(affinity)
    np.fill_diagonal(affinity, 0)
    solve = _exact if len(affinity) <= EXACT_TASKS else _heuristic
    return _served(affinity, solve(affinity, networks))


def predicted(affinity: NDArray[np.float64], tasks: Sequence[int]) -> NDArray[np.float64]:
    """s(b | G) for every b of the group `tasks`; the affinity's diagonal is 0."""
    inside = affinity[np.ix_(tasks, tasks)]
    return inside.sum(0) / max(1, len(tasks) - 1)


def _served(affinity: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> list[Group]:
    """Each task is given to the group that is best for it; groups that are left without any are dropped."""
    scores = [dict(zip(tasks, predicted(affinity, tasks), strict=True)) for tasks in groups]
    serving: dict[int, list[int]] = {place: [] for place in range(len(groups))}
    for task in range(len(affinity)):
        best = max((place for place in serving if task in scores[place]), key=lambda place: scores[place][task])
        serving[best].append(task)
    found = [
        Group(tuple(sorted(groups[place])), tuple(tasks), tuple(float(scores[place][task]) for task in tasks))
        for place, tasks in serving.items()
        if tasks
    ]
    return sorted(found, key=lambda group: group.serves)


# --- exact -----------------------------------------------------------------------------------------------------------


def _exact(affinity: NDArray[np.float64], networks: int) -> list[tuple[int, ...]]:
    """A dynamic program over sets of tasks, which are bits of a number.

    Serving each task by the best network that has it is the same as dividing the tasks into the parts A that one
    network serves each, which trains whatever is best for A: v(A) = max over G ⊇ A of Σ_{b ∈ A} s(b | G). With f_k(S)
    the best of serving S with k networks, f_k(S) = max over the parts A of S that hold its first task of
    v(A) + f_{k−1}(S − A). That takes k 3^T steps.
    """
    count = len(affinity)
    everything = 2**count - 1
    members = (np.arange(everything + 1)[:, None] >> np.arange(count) & 1).astype(bool)  # [2^T, T]
    sizes = members.sum(1)
    scores = members @ affinity / np.maximum(1, sizes - 1)[:, None]  # [2^T, T]: s(b | G) where b is in G
    by_size = np.argsort(sizes, kind="stable")

    best_value, best_group = np.zeros(everything + 1), np.zeros(everything + 1, dtype=int)
    for part in range(1, everything + 1):
        groups = by_size[(by_size & part) == part]
        values = scores[np.ix_(groups, members[part])].sum(1)
        chosen = np.argmax(values >= values.max() - _SAME)  # the smallest of the best
        best_value[part], best_group[part] = values[chosen], groups[chosen]

    reached: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # set -> value, parts
    for _ in range(min(networks, count)):
        further = dict(reached)
        for left in range(1, everything + 1):
            first = left & -left
            rest = left ^ first
            others = rest
            while True:  # every part of `left` that holds its first task: `first` and some of the `others`
                part = first | others
                before = reached.get(left ^ part)
                if before is not None:
                    value = before[0] + best_value[part]
                    if left not in further or value > further[left][0] + _SAME:
                        further[left] = (value, [*before[1], part])
                if others == 0:
                    break
                others = (others - 1) & rest
        reached = further
    parts = reached[everything][1]
    return [tuple(np.flatnonzero(members[best_group[part]]).tolist()) for part in parts]


# --- heuristic -------------------------------------------------------------------------------------------------------


def _heuristic(affinity: NDArray[np.float64], networks: int) -> list[tuple[int, ...]]:
    """Local search over the same division into parts, from several starts; what a part trains is grown greedily.

    The first start merges parts, the pair that loses least (or gains most) first, until there are few enough and no
    merge gains; the others are random. Then tasks are moved to another part, or exchanged between two, for as long as
    that gains. Nothing is promised but a local optimum.
    """
    grown: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}

    def value(part: frozenset[int]) -> float:
        if part not in grown:
            grown[part] = _grown(affinity, part)
        return grown[part][0]

    random = np.random.default_rng(0)
    count = len(affinity)
    starts = [_merged([frozenset([task]) for task in range(count)], networks, value)]
    for _ in range(_STARTS - 1):
        of_task = random.integers(networks, size=count)
        parts = [frozenset(np.flatnonzero(of_task == place).tolist()) for place in range(networks)]
        starts.append([part for part in parts if part])
    results = [_improved(start, networks, value) for start in starts]
    best = max(results, key=lambda parts: sum(map(value, parts)))
    return [grown[part][1] for part in best]


def _grown(affinity: NDArray[np.float64], part: frozenset[int]) -> tuple[float, tuple[int, ...]]:
    """v(A) from below: the best single helper is added for as long as one helps; with what is trained then."""
    served, group = sorted(part), sorted(part)

    def total(tasks: list[int]) -> float:
        return float(affinity[np.ix_(tasks, served)].sum() / max(1, len(tasks) - 1))

    best = total(group)
    while helpers := [task for task in range(len(affinity)) if task not in group]:
        values = [total([*group, task]) for task in helpers]
        if max(values) <= best + _SAME:
            break
        best = max(values)
        group.append(helpers[int(np.argmax(values))])
    return best, tuple(sorted(group))


def _merged(parts: list[frozenset[int]], networks: int, value: Value) -> list[frozenset[int]]:
    while len(parts) > 1:
        gains = {(a, b): value(a | b) - value(a) - value(b) for a, b in combinations(parts, 2)}
        (a, b), gain = max(gains.items(), key=lambda item: item[1])
        if len(parts) <= networks and gain <= _SAME:
            break
        parts = [*(part for part in parts if part not in (a, b)), a | b]
    return parts


def _improved(parts: list[frozenset[int]], networks: int, value: Value) -> list[frozenset[int]]:
    """The first move or exchange that gains is made, until none does."""
    while (better := _step(parts, networks, value)) is not None:
        parts = better
    return parts


def _step(parts: list[frozenset[int]], networks: int, value: Value) -> list[frozenset[int]] | None:
    targets = [*parts, frozenset[int]()] if len(parts) < networks else parts
    for here in parts:
        for there in targets:
            if there is here:
                continue
            now = value(here) + (value(there) if there else 0.0)
            moves = [(frozenset([task]), frozenset[int]()) for task in here]
            moves += [(frozenset([task]), frozenset([other])) for task in here for other in there]
            for out, back in moves:
                left, right = here - out | back, there - back | out
                if (value(left) if left else 0.0) + value(right) > now + _SAME:
                    kept = [part for part in parts if part is not here and part is not there]
                    return [*kept, *(part for part in (left, right) if part)]
    return None
