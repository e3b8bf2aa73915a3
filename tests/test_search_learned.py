"""What a search says when it has ended: whether luck chose, which parameters mattered, what task weights do."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import pytest

from polyshot.searching import confirmation
from polyshot.searching.confirmation import DEFAULT, Rerun
from polyshot.searching.importances import importances
from polyshot.searching.objective import Objective
from polyshot.searching.pictures import optuna_figures
from polyshot.searching.responses import moved, weight_responses
from polyshot.searching.searcher import STOPPED, VALUES
from polyshot.study import Study
from polyshot.study.search import Bound

# --- confirmation ----------------------------------------------------------------------------------------------------

ONE = Objective(("a/rmse",), {})


def reruns(values: dict[str, list[tuple[float, float]]]) -> list[Rerun]:
    """By candidate its (validation, test) RMSE for each seed, from 1."""
    return [
        Rerun(candidate, seed, {"validation": {"val/a/rmse": validation}, "test": {"a/rmse": test}})
        for candidate, pairs in values.items()
        for seed, (validation, test) in enumerate(pairs, 1)
    ]


def test_the_best_trials_that_hold_the_constraints_are_trained_again_seed_by_seed_beside_the_studys_own_values():
    base = Study.from_dict(
        {
            "name": "s",
            "seed": 7,
            "data": {"source": "t.csv"},
            "tasks": {"a": {"kind": "regression"}},
            "search": {"confirm": {"top": 2, "seeds": 2}},
        }
    )
    trials = []
    for number in range(4):
        trial = optuna.trial.create_trial(value=0.0, user_attrs={VALUES: {"training.epochs": number + 1}})
        trial.number = number
        trials.append(trial)
    trials[0].set_constraint("bound", 0.3)
    trials[1].user_attrs[STOPPED] = "asha"
    points = confirmation.points(base, trials)
    assert [name for name, _ in points] == [DEFAULT, "2", "3"] * 2
    assert [values["seed"] for _, values in points] == [8] * 3 + [9] * 3
    assert points[1][1] == {"training.epochs": 3, "seed": 8}


def test_the_trial_is_chosen_on_validation_and_judged_by_paired_differences_on_test():
    # Seeds differ by far more than trials do; of the same seed, trial 4 is better by about 1.
    seeds = np.array([10.0, 30.0, 20.0, 25.0])
    better = [(seed - 1, seed - 1 + wiggle) for seed, wiggle in zip(seeds, [0.1, -0.1, 0.05, 0.0], strict=True)]
    lucky = [(seed - 0.5, seed + wiggle) for seed, wiggle in zip(seeds, [2.0, -2.0, 1.0, -1.5], strict=True)]
    own = [(seed, seed) for seed in seeds]
    table = confirmation.confirmation(
        {"validation": ONE, "test": ONE}, reruns({DEFAULT: own, "2": lucky, "4": better})
    ).set_index("candidate")
    assert list(table.index) == ["4", "2", DEFAULT]
    assert table.loc["4", "difference"] == pytest.approx(0.9875)  # a lower RMSE is better: positive
    assert 0.8 < table.loc["4", "low"] < 0.9875 < table.loc["4", "high"] < 1.2
    assert table["verdict"].tolist()[:2] == ["helped", "within noise"]
    (sentence,) = confirmation.words(table.reset_index())
    assert "with 4 new seeds trial 4 is better than the study's own values in a/rmse" in sentence


def test_a_trial_that_breaks_a_constraint_with_new_seeds_comes_after_those_that_hold_it():
    bounded = Objective(("a/rmse",), {}, (Bound("a/rmse", True, 5.0),))
    found = reruns({DEFAULT: [(9.0, 9.0)] * 2, "1": [(3.0, 3.0), (4.0, 4.0)], "2": [(4.0, 4.0), (8.0, 8.0)]})
    assert confirmation.order(bounded, found) == ["2", "1"]
    assert confirmation.order(ONE, found) == ["1", "2"]


def test_seeds_that_some_candidate_lacks_are_left_out():
    found = reruns({DEFAULT: [(2.0, 2.0)] * 3, "1": [(1.0, 1.0)] * 2})
    table = confirmation.confirmation({"validation": ONE, "test": ONE}, found)
    assert table["seeds"].tolist() == [2, 2]
    nothing = confirmation.confirmation({"validation": ONE, "test": ONE}, reruns({DEFAULT: [(2.0, 2.0)], "1": []}))
    assert confirmation.words(nothing) == []


# --- parameters ------------------------------------------------------------------------------------------------------


def searched(trials: int = 40) -> optuna.Study:
    """A search in which `rate` is nearly all that matters, and `kind` and `late` nothing."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        width = trial.suggest_int("width", 8, 64)
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_float("late", 0, 1)
        value = (np.log10(rate) + 2) ** 2 + 0.001 * width
        if number % 10 == 9:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, [value, float(width)])
    return study


def test_importances_find_what_matters_for_each_objective():
    found = importances(searched(), ["a/rmse", "parameters"], seed=0)
    assert found["a/rmse"].index[0] == found["a/rmse"]["fanova"].idxmax() == "rate"
    assert found["parameters"].index[0] == found["parameters"]["fanova"].idxmax() == "width"
    assert found["a/rmse"]["fanova"].isna().tolist() == [name == "late" for name in found["a/rmse"].index]
    assert importances(searched(7), ["a/rmse", "parameters"], seed=0) == {}


def test_slices_and_contours_are_drawn_and_leave_matplotlib_as_it_was(tmp_path):
    from matplotlib import pyplot as plt

    study, before = searched(), {name: str(value) for name, value in plt.rcParams.items() if name != "backend"}
    names = ["a/rmse", "parameters"]
    files = list(optuna_figures(study, names, importances(study, names, seed=0), tmp_path))
    assert [file.name for file in files] == [
        "slices_a_rmse.png", "contour_a_rmse.png", "slices_parameters.png", "contour_parameters.png",
    ]  # fmt: skip
    assert all(file.stat().st_size > 10_000 for file in files)
    assert plt.get_fignums() == []
    assert {name: str(plt.rcParams[name]) for name in before} == before


# --- task weights ----------------------------------------------------------------------------------------------------


def test_moving_one_weight_keeps_the_proportions_of_the_others():
    weights = np.array([[0.2, 0.6, 0.2], [1.0, 0.0, 0.0]])
    found = moved(weights, 0, 0.5)
    assert np.allclose(found, [[0.5, 0.375, 0.125], [0.5, 0.25, 0.25]])
    assert np.allclose(moved(weights, 1, 1.0), [[0, 1, 0], [0, 1, 0]])


def test_responses_show_which_weight_helps_which_task():
    random = np.random.default_rng(0)
    weights = random.dirichlet([1, 1, 1], 80)
    trials = pd.DataFrame(weights, columns=[f"tasks.{task}.weight" for task in "abc"])
    trials["training.optimiser.learning_rate"] = random.uniform(1e-4, 1e-2, 80)
    trials["training.schedule.kind"] = random.choice(["cosine", "constant"], 80)
    trials["a/rmse"] = 2 - weights[:, 0]  # helped by its own weight alone
    trials["b/r2"] = 0.5 * weights[:, 1] + 0.4 * weights[:, 2]  # and by that of c, nearly as much
    trials["c/f1"] = 0.7
    table = weight_responses(trials, {"a": "rmse", "b": "r2", "c": "f1"}, seed=0)
    ends = table.pivot_table(index=["task", "weight_of"], columns="weight", values="value")
    slopes = ends[1.0] - ends[0.0]
    assert slopes["a", "a"] < -0.5
    assert slopes["b", "b"] > 0.1
    assert slopes["b", "c"] > 0.05
    assert slopes["b", "a"] < -0.2
    assert (slopes["c"].abs() < 1e-9).all()
    assert (table["low"] <= table["value"]).all()
    assert weight_responses(trials[:19], {"a": "rmse", "b": "r2"}, seed=0).empty
    assert weight_responses(trials.drop(columns="tasks.a.weight"), {"a": "rmse", "b": "r2"}, seed=0).empty
