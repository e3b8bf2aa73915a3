"""Where searches start: points by dotted key become the parameters that make them. No Ray is started."""

from __future__ import annotations

import json
import math

import optuna
import pytest

from polyshot.errors import StudyError
from polyshot.search_spaces.task_weights import shares
from polyshot.searching.searcher import START, TrialSearcher, open_study
from polyshot.searching.space import build_space
from polyshot.searching.starts import starts
from polyshot.study import Study


def study(*start, **search) -> Study:
    return Study.from_dict(
        {
            "name": "s",
            "data": {"source": "table.csv"},
            "tasks": {"a": {"kind": "regression"}, "b": {"kind": "binary"}, "c": {"kind": "binary", "weight": 2}},
            "search": {"start": list(start)} | search,
        }
    )


def begun_with(base: Study) -> dict:
    """The values of the trial that the first of the starts makes."""
    (parameters, *_) = starts(base).values()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    trial.enqueue_trial(parameters)
    return build_space(base)(trial.ask())


def test_shares_are_the_inverse_of_task_weights():
    for weights in ({"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.0, "b": 4.0, "c": 0.0}):
        base = study(spaces=["task_weights"])
        trial = optuna.trial.FixedTrial(shares(weights))
        made = build_space(base)(trial)
        assert made == {f"tasks.{task}.weight": pytest.approx(w / sum(weights.values())) for task, w in weights.items()}


def test_equal_weights_start_with_equal_weights():
    made = begun_with(study("equal_weights"))
    assert [made[f"tasks.{task}.weight"] for task in "abc"] == [pytest.approx(1 / 3)] * 3


def test_the_default_starts_with_the_studys_own_values_as_far_as_they_are_searched():
    made = begun_with(study("default"))
    assert [made[f"tasks.{task}.weight"] for task in "abc"] == pytest.approx([0.25, 0.25, 0.5])
    assert made["training.optimiser.learning_rate"] == 1e-3
    assert (made["training.batch_size"], made["training.schedule.kind"]) == (256, "cosine")


def test_a_point_of_ones_own_is_given_whole_also_where_the_space_is_conditional():
    point = {
        "model.sharing.kind": "mmoe",
        "model.sharing.experts": 3,
        "training.batch_size": 64,
        "tasks.c.weight": 6,
        "model.encoder.dropout": 0.25,
    }
    base = study(
        point,
        spaces=["task_weights", "sharing", "optimisation"],
        space={"model.encoder.dropout": {"low": 0.0, "high": 0.5}},
    )
    made = begun_with(base)
    assert made["tasks.c.weight"] == pytest.approx(0.75)  # beside those of the others, which are 1
    del point["tasks.c.weight"]
    assert {key: made[key] for key in point} == point


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"training.optimiser.learning_rate": 0.5}, "no trial with training.optimiser.learning_rate = 0.5"),
        ({"training.batch_size": 100}, "no trial with training.batch_size = 100"),
        ({"model.encoder.width": 64}, "no trial with model.encoder.width = 64"),
        ({"training.epoch": 64}, "search.start.0: is no study"),
        ({"training.epochs": "many"}, "search.start.0: is no study"),
        ("nowhere", "'nowhere' is no folder of a search"),
    ],
)
def test_a_start_that_the_search_cannot_have_is_refused(point, words):
    with pytest.raises(StudyError, match=words):
        starts(study(point))


def test_equal_weights_need_a_search_of_task_weights():
    with pytest.raises(StudyError, match="no trial with tasks.a.weight"):
        starts(study("equal_weights", spaces=["optimisation"]))


def test_of_an_earlier_search_what_is_searched_again_is_taken(tmp_path):
    earlier = {"training.batch_size": 128, "model.encoder.width": 8, "training.optimiser.learning_rate": 0.9}
    (tmp_path / "result.json").write_text(json.dumps({"best_values": earlier}))
    assert starts(study(str(tmp_path))) == {str(tmp_path): {"log2(training.batch_size)": 7}}


def test_starts_are_the_first_trials_and_count(tmp_path):
    base = study("equal_weights", {"training.batch_size": 64}, trials=3)
    found = open_study(base, tmp_path / "journal", "maximize")
    for words, parameters in starts(base).items():
        found.enqueue_trial(parameters, user_attrs={START: words})
    search = TrialSearcher(found, build_space(base), sampler="tpe", trials=3, deadline=math.inf)
    first, second, third = (search.suggest(name)["values"] for name in "xyz")
    assert first["tasks.a.weight"] == pytest.approx(1 / 3)
    assert second["training.batch_size"] == 64
    assert third["tasks.a.weight"] != pytest.approx(1 / 3)
    assert search.is_over
    assert [trial.user_attrs.get(START) for trial in found.trials] == ["equal_weights", "point 1", None]
