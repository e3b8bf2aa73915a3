"""What TPE learns from trials that are stopped early: values at equal epochs, at the highest rung that enough reach."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from polyshot.searching.bohb import BOHBSampler

RANGE = FloatDistribution(0.0, 1.0)


def study_of(*trials: optuna.trial.FrozenTrial, is_constrained: bool = False) -> optuna.Study:
    sampler = BOHBSampler([1, 4], seed=0, is_constrained=is_constrained)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def trial(x: float, reached: dict[int, float], *, stopped: bool = True, **more) -> optuna.trial.FrozenTrial:
    value = None if stopped else list(reached.values())[-1]
    state = TrialState.PRUNED if stopped else TrialState.COMPLETE
    return create_trial(
        params={"x": x}, distributions={"x": RANGE}, value=value, intermediate_values=reached, state=state, **more
    )


def drawn(study: optuna.Study, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points that are learnt, and those of every third trial."""
    asked = [study.ask({"x": RANGE}) for _ in range(count)]
    values = np.array([one.params["x"] for one in asked])
    is_random = np.array([one.number % 3 == 2 for one in asked])
    return values[~is_random], values[is_random]


def points(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.linspace(0, 1, count))


@pytest.mark.parametrize(("reach_four", "centre"), [(9, 0.2), (12, 0.8)])
def test_values_are_compared_at_the_highest_rung_that_ten_trials_have_reached(reach_four, centre):
    """At the first rung points near 0.2 are best, at the second those near 0.8; who came further is none the better."""
    study = study_of(
        *(
            trial(x, {1: -abs(x - 0.2)} | ({4: -abs(x - 0.8)} if number < reach_four else {}))
            for number, x in enumerate(points(40))
        )
    )
    learnt, random = drawn(study)
    assert np.abs(learnt - centre).mean() < 0.15
    assert np.abs(random - 0.5).mean() == pytest.approx(0.25, abs=0.08)  # of a uniform distribution
    assert len(random) == 20


def test_trainings_that_ended_by_themselves_are_compared_by_what_they_came_to():
    study = study_of(
        *(trial(x, {1: -abs(x - 0.2), 3: -abs(x - 0.6)}, stopped=False) for x in points(12)),
        *(trial(x, {1: -abs(x - 0.2)}) for x in points(12)),
    )
    assert np.abs(drawn(study)[0] - 0.6).mean() < 0.15


def test_trials_that_go_on_are_known_by_what_they_had_at_a_rung():
    """The best go on longest: without them, those that were stopped would be what is learnt from."""
    study = study_of(*(trial(x, {1: -abs(x - 0.5)}) for x in points(60) if abs(x - 0.5) > 0.2))
    for x in np.linspace(0.45, 0.55, 8):
        study.enqueue_trial({"x": x})
        study.ask({"x": RANGE}).report(-abs(x - 0.5), 1)
    assert np.abs(drawn(study)[0] - 0.5).mean() < 0.1


def test_before_ten_trials_have_ended_points_are_random():
    study = study_of(*(trial(0.2, {1: 1.0}) for _ in range(9)))
    learnt, _ = drawn(study)
    assert np.abs(learnt - 0.5).mean() == pytest.approx(0.25, abs=0.06)
    study.add_trial(trial(0.2, {1: 1.0}))
    learnt, random = drawn(study)
    assert learnt.std() < 0.5 * random.std()


def test_what_breaks_a_constraint_is_not_followed():
    study = study_of(
        *(trial(x, {1: x}, constraints={"x <= 0.5": x - 0.5}) for x in points(40)),
        is_constrained=True,
    )
    learnt, _ = drawn(study)
    assert np.mean(learnt < 0.55) > 0.8


def test_what_trials_that_run_will_break_is_not_known():
    """Were they learnt from, those near 1 would count as the best that break nothing."""
    study = study_of(is_constrained=True)
    for x in points(12):
        study.enqueue_trial({"x": x})
        study.ask({"x": RANGE}).report(x, 1)
    learnt, _ = drawn(study)
    assert np.abs(learnt - 0.5).mean() == pytest.approx(0.25, abs=0.06)


def test_parameters_that_only_some_trials_have_are_learnt_too():
    study = study_of(
        *(
            create_trial(
                params={"kind": kind} | ({"x": x} if kind == "b" else {}),
                distributions={"kind": optuna.distributions.CategoricalDistribution(["a", "b"])}
                | ({"x": RANGE} if kind == "b" else {}),
                state=TrialState.PRUNED,
                intermediate_values={1: -abs(x - 0.2) if kind == "b" else -1.0},
            )
            for x in points(20)
            for kind in "ab"
        )
    )
    asked = [study.ask() for _ in range(60)]
    kinds = np.array([one.suggest_categorical("kind", ["a", "b"]) for one in asked])
    values = np.array([one.suggest_float("x", 0.0, 1.0) for one in asked])
    learnt = np.array([one.number % 3 != 2 for one in asked])
    assert np.mean(kinds[learnt] == "b") > 0.7
    assert np.abs(values[learnt] - 0.2).mean() < 0.15
