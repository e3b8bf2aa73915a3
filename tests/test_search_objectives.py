"""What a search may optimise and must hold: the schema's rules, the numbers, the Pareto front. No Ray is started."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from polyshot.affinities.subsets import of_tasks
from polyshot.errors import RunError, StudyError
from polyshot.searching.objective import Objective
from polyshot.searching.protocol import OBJECTIVE, OBJECTIVES, STOPPED, VIOLATIONS
from polyshot.searching.ranking import chosen_words, fronts, pareto_front, ranked
from polyshot.searching.searcher import TrialSearcher, open_study
from polyshot.searching.space import build_space
from polyshot.study import Study
from polyshot.study.search import Bound

BASELINES = {"read/rmse": 10.0, "math/accuracy": 0.5}
METRICS = {
    "val/loss": 1.0,
    "val/read/rmse": 9.0,
    "val/read/r2": 0.3,
    "val/math/accuracy": 0.45,
    "cost/parameters": 64.0,
}


def study(**search) -> Study:
    return Study.from_dict(
        {
            "name": "s",
            "data": {"source": "table.csv"},
            "tasks": {"read": {"kind": "regression", "weight": 3}, "math": {"kind": "multiclass"}},
            "search": {"spaces": [], "space": {"model.encoder.dropout": {"low": 0.0, "high": 0.9}}} | search,
        }
    )


def of(**search) -> Objective:
    return Objective.of(study(**search), BASELINES)


# --- what can be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"objective": "read/accuracy"}, ["search.objective", "read/rmse", "'read/accuracy'"]),
        ({"objective": ["improvement", "latency"]}, ["'latency'", "latency_ms"]),
        ({"objective": []}, ["search.objective"]),
        ({"objective": ["read", "math", "read"]}, ["name one twice"]),
        ({"objective": ["rank", "parameters"]}, ["'rank'", "stand alone"]),
        ({"objective": ["read", "math"], "scheduler": "asha"}, ["'asha'", "one objective", "none"]),
        ({"objective": "rank", "scheduler": "median"}, ["'median'", "one objective"]),
        ({"objective": ["read", "math"], "sampler": "cmaes"}, ["'cmaes'", "nsga2"]),
        ({"constraints": ["math >= 0.8"], "sampler": "cmaes"}, ["'cmaes'", "constraints"]),
        ({"sampler": "nsga3"}, ["'nsga3'", "nsga2"]),
        ({"constraints": ["math above 0.8"]}, ["'math above 0.8'", "math/r2 >= 0.8"]),
        ({"constraints": ["math >= much"]}, ["'math >= much'"]),
        ({"constraints": ["latencyms <= 5"]}, ["search.constraints.0", "'latencyms'", "latency_ms"]),
    ],
)
def test_what_cannot_be_asked_for_is_told_in_words(search, words):
    with pytest.raises(StudyError) as caught:
        study(**search)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_rank_needs_tasks_to_weigh_against_each_other():
    values = study().to_dict()
    values |= {"tasks": {"read": {"kind": "regression"}}, "search": {"objective": "rank"}}
    with pytest.raises(StudyError, match="name its metric"):
        Study.from_dict(values)


def test_trials_are_stopped_early_where_there_is_one_objective_unless_the_study_says_otherwise():
    assert study().search.stopping == "asha"
    assert study(objective=["read", "parameters"]).search.stopping == "none"
    assert study(objective="rank").search.stopping == "none"
    assert study(scheduler="median").search.stopping == "median"


def test_metrics_that_the_search_asks_for_are_computed_beside_the_tasks_own():
    asked = study(objective=["read/r2", "math"], constraints=["read/mae <= 3", "math/f1 >= 0.1"])
    assert asked.watched("read") == ["rmse", "mae", "r2"]
    assert asked.watched("math") == ["accuracy", "f1"]
    assert study().watched("read") == ["rmse"]


def test_a_study_of_some_of_the_tasks_asks_for_nothing_of_the_others():
    values = study(objective=["read", "math"], constraints=["math >= 0.1", "read/r2 >= 0.2"]).to_dict()
    values["tasks"]["sing"] = {"kind": "binary"}
    search = of_tasks(Study.from_dict(values), ["read", "sing"]).search
    assert (search.objective, search.constraints) == ("improvement", ["read/r2 >= 0.2"])


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "direction"),
    [
        ("improvement", 0.0, "maximize"),
        ("worst_improvement", -0.1, "maximize"),
        ("read", 9.0, "minimize"),
        ("read/r2", 0.3, "maximize"),
        ("read/improvement", 0.1, "maximize"),
        ("math/improvement", -0.1, "maximize"),
        ("parameters", 64.0, "minimize"),
    ],
)
def test_each_objective_is_a_number_of_the_trials_metrics_with_a_direction(name, value, direction):
    objective = of(objective=name)
    assert objective.values(METRICS) == [pytest.approx(value)]
    assert objective.directions == (direction,)


def test_several_objectives_keep_their_order_and_rank_is_every_tasks_metric():
    assert of(objective=["parameters", "math"]).values(METRICS) == [64.0, 0.45]
    assert of(objective="rank").values(METRICS) == [9.0, 0.45]
    assert of(objective="rank").rank_weights == (0.75, 0.25)


def test_a_constraint_is_broken_by_a_share_of_its_bound():
    objective = of(constraints=["math >= 0.5", "parameters <= 128"])
    assert objective.violations(METRICS) == {
        "math/accuracy >= 0.5": pytest.approx(0.1),
        "parameters <= 128": pytest.approx(-0.5),
    }
    assert Bound("x", True, 0.0).violation(-2.0) == 2.0
    assert objective.costs == ["parameters"]


def test_an_improvement_over_a_baseline_of_zero_is_refused_where_it_is_asked_for():
    undefined = {"read/rmse": 0.0, "math/accuracy": 0.5}
    with pytest.raises(RunError, match="read/rmse"):
        Objective.of(study(objective="worst_improvement"), undefined)
    assert Objective.of(study(objective="math/improvement"), undefined).names == ("math/improvement",)


# --- the best one ----------------------------------------------------------------------------------------------------

NUMBERS = count()


def trial(*values: float, violation: float | None = None, stopped: bool = False) -> FrozenTrial:
    made = create_trial(values=values, user_attrs={STOPPED: "minutes"} if stopped else {})
    made.number = next(NUMBERS)
    if violation is not None:
        made.set_constraint("bound", violation)
    return made


def test_fronts_are_what_a_comparison_of_all_pairs_gives():
    points = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    numbers = fronts(points)
    for place, point in enumerate(points):
        dominating = (points >= point).all(1) & (points > point).any(1)
        assert numbers[place] == (numbers[dominating].max() + 1 if dominating.any() else 0)


def test_trials_that_hold_the_constraints_come_first_then_stopped_ones_then_by_what_they_break():
    good, better, fast = trial(0.1, violation=-1.0), trial(0.2, violation=0.0), trial(0.9, violation=0.0, stopped=True)
    far, near = trial(0.99, violation=2.0), trial(0.5, violation=0.1)
    order = ranked([far, near, fast, good, better], of(constraints=["math >= 0.5"]))
    assert order == [better, good, fast, near, far]
    assert pareto_front(order, of()) == [better]
    assert "nearest" in chosen_words([], of())


def test_of_the_pareto_front_the_trial_nearest_to_the_best_of_every_objective_is_chosen():
    objective = of(objective=["math", "parameters"])  # more of one, less of the other
    knee, cheap, good = trial(0.8, 120.0), trial(0.5, 100.0), trial(0.9, 500.0)
    beaten, beaten_twice = trial(0.8, 130.0), trial(0.7, 600.0)
    order = ranked([beaten_twice, cheap, beaten, good, knee], objective)
    assert order[0] == knee
    assert {one.number for one in pareto_front(order, objective)} == {knee.number, cheap.number, good.number}
    assert order[3:] == [beaten, beaten_twice]
    assert "3 that no other" in chosen_words(order[:3], objective)


def test_rank_takes_the_best_weighted_mean_rank():
    # Ranks of read (less is better; weight 3) and math (weight 1).
    first, second, third = trial(1.0, 0.2), trial(2.0, 0.9), trial(3.0, 0.3)
    assert ranked([third, second, first], of(objective="rank")) == [first, second, third]
    assert pareto_front([third, second, first], of(objective="rank")) == [first, second]


# --- what Optuna is told ---------------------------------------------------------------------------------------------


def points(base: Study, journal, trials: int) -> list[FrozenTrial]:
    """A search of x on [0, 0.9] by two objectives that disagree, (1 − x)² and x², where x must be 0.3 at least."""
    objective = Objective.of(base, BASELINES)
    found = open_study(base, journal, *objective.directions)
    search = TrialSearcher(found, build_space(base), sampler=base.search.sampler, trials=trials, deadline=math.inf)
    for name in map(str, range(trials)):
        x = search.suggest(name)["values"]["model.encoder.dropout"]
        values = [(1 - x) ** 2, x**2]
        bounds = {"x >= 0.3": 0.3 - x}
        result = {OBJECTIVE: values[0], OBJECTIVES: values, VIOLATIONS: bounds, "epoch": 4, "finished": name != "3"}
        search.on_trial_result(name, result)
        search.on_trial_complete(name, result)
    return found.get_trials()


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random", "qmc"])
def test_samplers_of_several_objectives_learn_what_holds_the_constraints(tmp_path, sampler):
    base = study(objective=["read", "parameters"], constraints=["math >= 0.3"], sampler=sampler, trials=40)
    trials = points(base, tmp_path / "journal", 11 if sampler == "gp" else 40)  # after ten
    assert all(one.state == TrialState.COMPLETE for one in trials)
    assert trials[3].user_attrs[STOPPED] == "asha"
    assert all(
        one.constraints["x >= 0.3"] == pytest.approx(0.3 - one.params["model.encoder.dropout"]) for one in trials
    )
    objective = Objective.of(base, BASELINES)
    front = pareto_front(trials, objective)
    assert {one.number for one in front} | {3} >= {
        one.number for one in trials if one.params["model.encoder.dropout"] >= 0.3
    } - {3}
    if sampler == "tpe":
        late = [one.params["model.encoder.dropout"] for one in trials[len(trials) // 2 :]]
        assert np.mean([x >= 0.3 for x in late]) > 0.75


def test_a_constraint_on_what_is_no_number_fails_the_trial(tmp_path):
    base = study(constraints=["math >= 0.3"])
    found = open_study(base, tmp_path / "journal", "maximize")
    search = TrialSearcher(found, build_space(base), sampler="tpe", trials=1, deadline=math.inf)
    search.suggest("x")
    result = {OBJECTIVE: 1.0, OBJECTIVES: [1.0], VIOLATIONS: {"math >= 0.3": math.nan}, "epoch": 1, "finished": True}
    search.on_trial_complete("x", result)
    (failed,) = found.get_trials()
    assert failed.state == TrialState.FAIL
    assert "math >= 0.3" in failed.user_attrs["error"]
