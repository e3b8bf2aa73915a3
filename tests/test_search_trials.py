"""What Optuna is told of trials, how a search is taken up again, how resources are shared out. No Ray is started."""

from __future__ import annotations

import math
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from polyshot.errors import ResourceError
from polyshot.searching.protocol import ERROR, OBJECTIVE, OBJECTIVES, RESOURCE, STOPPED
from polyshot.searching.scheduling import Plan, build_scheduler, plan_trials, replay, rungs
from polyshot.searching.searcher import TrialSearcher, check_sampler, open_study
from polyshot.searching.space import build_space
from polyshot.study import Study


def study(**sections) -> Study:
    search = {"spaces": [], "space": {"model.encoder.dropout": {"low": 0.0, "high": 0.9}}, "trials": 8}
    return Study.from_dict(
        {
            "name": "s",
            "data": {"source": "table.csv"},
            "tasks": {"a": {"kind": "regression"}, "b": {"kind": "binary"}},
            **sections,
            "search": search | sections.get("search", {}),
        }
    )


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "optuna.journal"


def searcher(base: Study, journal, **settings) -> TrialSearcher:
    return TrialSearcher(
        open_study(base, journal, "maximize"),
        build_space(base),
        sampler=base.search.sampler,
        trials=base.search.trials,
        deadline=settings.pop("deadline", math.inf),
        **settings,
    )


def result(value: float, epoch: int, **more) -> dict:
    return {OBJECTIVE: value, OBJECTIVES: [value], "epoch": epoch, RESOURCE: epoch, "finished": False} | more


def trials(journal, base: Study | None = None) -> list[optuna.trial.FrozenTrial]:
    return open_study(base or study(), journal, "maximize").trials


# --- how trials end --------------------------------------------------------------------------------------------------


def test_a_trial_that_trains_to_its_end_is_complete_with_its_value(journal):
    search = searcher(study(), journal)
    suggested = search.suggest("x")
    search.on_trial_result("x", result(0.1, 5))
    search.on_trial_complete("x", result(0.4, 10, finished=True))
    (trial,) = trials(journal)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)
    assert trial.intermediate_values == {5: 0.1, 10: 0.4}
    assert trial.user_attrs["values"] == suggested["values"] == {"model.encoder.dropout": trial.params.popitem()[1]}


def test_a_trial_that_the_scheduler_stops_is_pruned_with_its_last_value(journal):
    search = searcher(study(), journal, stopped_by="asha")
    search.suggest("x")
    search.on_trial_result("x", result(0.3, 2))
    search.on_trial_complete("x", result(0.2, 4))
    (trial,) = trials(journal)
    assert (trial.state, trial.value, trial.user_attrs[STOPPED]) == (TrialState.PRUNED, 0.2, "asha")


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_a_sampler_that_ignores_pruned_trials_is_told_what_a_stopped_one_reached(journal, sampler):
    base = study(search={"sampler": sampler})
    search = searcher(base, journal)
    search.suggest("x")
    search.on_trial_complete("x", result(-0.2, 4))
    (trial,) = trials(journal, base)
    assert (trial.state, trial.value, trial.user_attrs[STOPPED]) == (TrialState.COMPLETE, -0.2, "asha")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_objective_that_is_no_number_fails_the_trial_and_spares_the_study(journal, value):
    search = searcher(study(), journal)
    search.suggest("x")
    search.on_trial_result("x", result(value, 2))
    search.on_trial_complete("x", result(value, 4, finished=True))
    search.suggest("y")
    search.on_trial_complete("y", result(0.5, 4, finished=True))
    failed, good = trials(journal)
    assert (failed.state, failed.intermediate_values) == (TrialState.FAIL, {})
    assert "not a number" in failed.user_attrs[ERROR]
    assert good.value == 0.5


def test_an_error_fails_the_trial_with_its_text(journal):
    search = searcher(study(), journal)
    search.suggest("x")
    search.on_trial_complete("x", result(math.nan, 0, error="ValueError: no"))
    search.suggest("y")
    search.on_trial_complete("y", error=True)
    raised, died = trials(journal)
    assert raised.state == died.state == TrialState.FAIL
    assert raised.user_attrs[ERROR] == "ValueError: no"
    assert "process died" in died.user_attrs[ERROR]


def test_values_that_make_no_study_cost_one_trial(journal):
    base = study(search={"trials": 2})

    def check(values: dict) -> None:
        if not refused:
            refused.append(values)
            raise ValueError("no such study")

    refused: list[dict] = []
    search = searcher(base, journal, check=check)
    assert search.suggest("x")["number"] == 1
    assert search.suggest("y") == Searcher.FINISHED
    failed, running = trials(journal)
    assert (failed.state, running.state) == (TrialState.FAIL, TrialState.RUNNING)
    assert failed.user_attrs[ERROR] == "ValueError: no such study"


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_search_goes_on_with_the_trials_that_were_running_and_then_with_what_the_budget_leaves(journal):
    base = study(search={"trials": 4})
    first = searcher(base, journal)
    suggested = [first.suggest(name) for name in "abc"]
    first.on_trial_complete("a", result(0.1, 9, finished=True))
    first.on_trial_result("b", result(0.2, 5))

    second = searcher(base, journal)  # as another process would, after a kill
    assert [second.suggest(name) for name in "bc"] == suggested[1:]
    second.on_trial_result("b", result(0.2, 5))  # an epoch that is trained again
    second.on_trial_complete("b", result(0.3, 9, finished=True))
    assert second.suggest("d")["number"] == 3
    assert second.suggest("e") == Searcher.FINISHED
    states = [trial.state for trial in trials(journal)]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]

    larger = searcher(study(search={"trials": 6}), journal)
    assert [larger.suggest(name)["number"] for name in "fghi"] == [2, 3, 4, 5]


def test_no_trial_begins_after_the_deadline(journal):
    search = searcher(study(), journal, deadline=time.time() - 1)
    assert search.is_over
    assert search.suggest("x") == Searcher.FINISHED
    assert trials(journal) == []


def points(base: Study, journal, count: int) -> list[float]:
    search = searcher(base, journal)
    found = []
    for index in range(count):
        found.append(search.suggest(str(index))["values"]["model.encoder.dropout"])
        search.on_trial_complete(str(index), result(-abs(found[-1] - 0.3), 9, finished=True))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "nsga2", "qmc"])
def test_every_sampler_goes_on_without_repeating_itself(journal, sampler):
    base = study(search={"sampler": sampler, "trials": None, "minutes": 1})
    drawn = points(base, journal, 4) + points(base, journal, 4) + points(base, journal, 4)
    assert len(set(drawn)) == 12


def test_a_low_discrepancy_sequence_goes_on_where_it_was(journal, tmp_path):
    base = study(search={"sampler": "qmc", "trials": 20})
    in_one_go = points(base, tmp_path / "other.journal", 9)
    in_two = points(base, journal, 4) + points(base, journal, 5)
    assert in_two[1:] == in_one_go[1:]  # the first point is drawn at random, to learn the space


def test_the_same_seed_gives_the_same_search(tmp_path):
    base = study(search={"sampler": "tpe"})
    assert points(base, tmp_path / "a", 5) == points(base, tmp_path / "b", 5)
    assert points(base, tmp_path / "c", 5) != points(study(seed=1), tmp_path / "d", 5)


def test_a_journal_that_a_killed_process_left_locked_and_cut_short_opens_at_once(journal):
    points(study(), journal, 2)
    journal.with_name("optuna.journal.lock").symlink_to(journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    started = time.monotonic()
    assert len(points(study(), journal, 2)) == 2
    assert time.monotonic() - started < 10  # Optuna alone waits for 30 s
    assert [trial.state for trial in trials(journal)] == [TrialState.COMPLETE] * 4


def test_a_missing_sampler_is_told_with_its_remedy(monkeypatch):
    check_sampler("cmaes")
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ResourceError, match=r"pip install 'polyshot\[cmaes\]'"):
        check_sampler("cmaes")


# --- resources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "search", "nodes", "plan"),
    [
        ({}, {}, [{"CPU": 8}], Plan(8, 1, 0)),
        ({}, {"concurrency": 3}, [{"CPU": 8}], Plan(3, 1, 0)),
        ({}, {"concurrency": 30}, [{"CPU": 8}], Plan(8, 1, 0)),
        ({"threads": 3}, {}, [{"CPU": 8}, {"CPU": 4}], Plan(3, 3, 0)),  # a trial's threads are on one node
        ({"workers": 2, "threads": 2}, {}, [{"CPU": 8}], Plan(2, 2, 0)),
        ({"workers": 3}, {}, [{"CPU": 2}, {"CPU": 2}], Plan(1, 1, 0)),
        ({}, {}, [{"CPU": 16, "GPU": 1}], Plan(4, 1, 0.25)),
        ({}, {"concurrency": 6}, [{"CPU": 16, "GPU": 2}], Plan(6, 1, 0.3333)),
        ({}, {"concurrency": 2}, [{"CPU": 16, "GPU": 4}], Plan(2, 1, 1)),
        ({"device": "cpu"}, {}, [{"CPU": 16, "GPU": 1}], Plan(16, 1, 0)),
        ({"workers": 2}, {}, [{"CPU": 16, "GPU": 4}], Plan(2, 1, 1)),
    ],
)
def test_trials_run_as_many_at_once_as_the_nodes_hold(scale, search, nodes, plan):
    assert plan_trials(study(scale=scale, search=search), nodes) == plan


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"workers": 5}, ["scale.workers 5", "4 CPUs"]),
        ({"threads": 3, "workers": 1}, ["scale.threads 3", "4 CPUs", "2 nodes"]),
        ({"device": "cuda"}, ["scale.device", "GPU"]),
    ],
)
def test_a_trial_that_can_never_run_is_refused(scale, words):
    with pytest.raises(ResourceError) as caught:
        plan_trials(study(scale=scale), [{"CPU": 2}, {"CPU": 2}])
    assert all(word in str(caught.value) for word in words)


# --- schedulers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "grace"), [(50, 5), (80, 5), (4, 1), (3, 5), (100, 1)])
def test_trials_report_at_every_rung_of_asha(epochs, grace):
    base = study(training={"epochs": epochs}, search={"grace_epochs": grace})
    bracket = build_scheduler(base, "maximize")._brackets[0]
    assert rungs(base) == sorted(rung for rung, _ in bracket._rungs)


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_a_scheduler_that_was_shown_earlier_trials_stops_a_worse_one(kind, direction, sign):
    base = study(training={"epochs": 50}, search={"scheduler": kind})
    scheduler = build_scheduler(base, direction)
    replay(scheduler, [{5: sign * (0.5 + index / 10), 20: sign * 0.8} for index in range(5)])
    for value, decision in ((0.1, TrialScheduler.STOP), (0.99, TrialScheduler.CONTINUE)):
        trial = Trial("new", stub=True, trial_id=f"new-{value}")
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {RESOURCE: 5, OBJECTIVE: sign * value}) == decision
