"""Groups of tasks: the exact search against every grouping there is, the heuristic against the exact search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from polyshot.affinities import grouping
from polyshot.affinities.grouping import best_groups, predicted


def value(affinity: np.ndarray, groups) -> float:
    """Each task served by the best group that has it, by the definition."""

    def score(task: int, group) -> float:
        others = [other for other in group if other != task]
        return float(np.mean([affinity[other, task] for other in others])) if others else 0.0

    return sum(
        max((score(task, group) for group in groups if task in group), default=-np.inf) for task in range(len(affinity))
    )


def best_by_brute_force(affinity: np.ndarray, networks: int) -> float:
    tasks = range(len(affinity))
    subsets = [group for size in range(1, len(affinity) + 1) for group in combinations(tasks, size)]
    return max(value(affinity, groups) for count in range(1, networks + 1) for groups in combinations(subsets, count))


def random_affinity(tasks: int, seed: int) -> np.ndarray:
    affinity = np.random.default_rng(seed).normal(size=(tasks, tasks))
    np.fill_diagonal(affinity, 0)
    return affinity


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tasks", "networks"), [(2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 2)])
def test_the_exact_search_finds_what_brute_force_finds(tasks, networks, seed):
    affinity = random_affinity(tasks, seed)
    groups = best_groups(affinity, networks)
    assert value(affinity, [group.tasks for group in groups]) == pytest.approx(best_by_brute_force(affinity, networks))


@pytest.mark.parametrize("tasks", [6, 10, 14])
def test_every_task_is_served_once_by_a_group_that_trains_it_and_predictions_are_those_of_the_definition(tasks):
    affinity = random_affinity(tasks, 1)
    groups = best_groups(affinity, 3)
    assert 1 <= len(groups) <= 3
    assert sorted(task for group in groups for task in group.serves) == list(range(tasks))
    assert all(set(group.serves) <= set(group.tasks) for group in groups)
    total = sum(sum(group.predicted) for group in groups)
    assert total == pytest.approx(value(affinity, [group.tasks for group in groups]))


def test_two_pairs_of_related_tasks_are_found_among_four():
    affinity = np.array([[0, -1, 2, -1], [-1, 0, -1, 1], [2, -1, 0, -1], [-1, 1, -1, 0]], dtype=float)
    groups = best_groups(affinity, 2)
    assert [group.tasks for group in groups] == [(0, 2), (1, 3)]
    assert [group.predicted for group in groups] == [(2, 2), (1, 1)]


def test_a_task_may_help_in_a_network_that_does_not_serve_it():
    """0 helps both 1 and 2, which harm each other, and is itself best alone."""
    affinity = np.array([[0, 1, 1], [-1, 0, -5], [-1, -5, 0]], dtype=float)
    groups = best_groups(affinity, 3)
    assert [(group.tasks, group.serves) for group in groups] == [((0,), (0,)), ((0, 1), (1,)), ((0, 2), (2,))]


def test_equally_good_groupings_cost_no_network_or_helper_more():
    assert [group.tasks for group in best_groups(np.ones((4, 4)), 3)] == [(0, 1, 2, 3)]
    assert [group.tasks for group in best_groups(-np.ones((3, 3)), 3)] == [(0,), (1,), (2,)]


def test_pairs_that_are_not_known_count_as_neither_help_nor_harm_and_the_diagonal_as_nothing():
    affinity = np.array([[9.0, np.nan, 1.0], [np.nan, 9.0, np.nan], [1.0, np.nan, 9.0]])
    before = affinity.copy()
    groups = best_groups(affinity, 2)
    assert [group.tasks for group in groups] == [(0, 2), (1,)]
    np.testing.assert_array_equal(affinity, before)


@pytest.mark.parametrize("networks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_heuristic_comes_close_to_the_exact_search(monkeypatch, seed, networks):
    affinity = random_affinity(9, seed)
    exact = value(affinity, [group.tasks for group in best_groups(affinity, networks)])
    monkeypatch.setattr(grouping, "EXACT_TASKS", 0)
    found = value(affinity, [group.tasks for group in best_groups(affinity, networks)])
    assert exact + 1e-9 >= found >= exact - 0.1 * abs(exact)


def test_the_heuristic_finds_planted_groups_of_many_tasks():
    group_of = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 5))
    affinity = np.where(group_of[:, None] == group_of, 1.0, -1.0) + random_affinity(20, 0) / 5
    found = {frozenset(group.serves) for group in best_groups(affinity, 4)}
    assert found == {frozenset(np.flatnonzero(group_of == place).tolist()) for place in range(4)}


def test_the_order_of_the_tasks_does_not_matter():
    affinity, order = random_affinity(7, 3), np.random.default_rng(1).permutation(7)
    plain = {frozenset(group.tasks) for group in best_groups(affinity, 3)}
    shuffled = best_groups(affinity[np.ix_(order, order)], 3)
    assert {frozenset(order[list(group.tasks)].tolist()) for group in shuffled} == plain


def test_a_group_predicts_the_mean_of_what_its_members_do_for_each():
    affinity = np.array([[0.0, 1, 2], [3, 0, 4], [5, 6, 0]])
    assert predicted(affinity, (0, 1, 2)).tolist() == [4.0, 3.5, 3.0]
    assert predicted(affinity, (1,)).tolist() == [0.0]
