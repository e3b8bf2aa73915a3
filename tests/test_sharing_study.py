"""Sharing in the study file and in a search: sections, mistakes in words, and the soft penalty's part of the loss."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from helpers_training import make_prepared, make_study

from polyshot.errors import StudyError
from polyshot.models.multitask import build_model
from polyshot.search_spaces.groupings import groupings
from polyshot.search_spaces.sharing import sharing
from polyshot.study import Study
from polyshot.training.loop import TrainingRun


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problems(values: dict[str, object]) -> list[str]:
    with pytest.raises(StudyError) as caught:
        make_study(values)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        ("hard", {}),
        ("soft", {"strength": 1e-3}),
        ("cross_stitch", {"own_share": 0.9}),
        ("attention", {}),
        ("mmoe", {"experts": 4}),
        ("cgc", {"shared_experts": 1, "task_experts": 1}),
        ("ple", {"levels": 2, "shared_experts": 1, "task_experts": 1}),
    ],
)
def test_a_kind_alone_is_a_scheme_with_defaults(kind, defaults):
    assert make_study({"model.sharing.kind": kind}).to_dict()["model"]["sharing"] == {"kind": kind, **defaults}


def test_a_study_that_says_nothing_shares_hard():
    assert make_study().model.sharing.kind == "hard"


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"kind": "mmo"}, "model.sharing", "Did you mean 'mmoe'?"),
        ({"kind": "mmoe", "expert": 3}, "model.sharing.expert", "Did you mean 'experts'?"),
        ({"kind": "mmoe", "levels": 3}, "model.sharing.levels", "unknown key"),
        ({"kind": "mmoe", "experts": 0}, "model.sharing.experts", "greater than or equal to 1"),
        ({"kind": "soft", "strength": -1.0}, "model.sharing.strength", "greater than or equal to 0"),
        ({"kind": "cross_stitch", "own_share": 1.5}, "model.sharing.own_share", "less than or equal to 1"),
        ({"kind": "hierarchical"}, "model.sharing.depths", "'depths' is missing"),
        ({"kind": "hierarchical", "depths": {}}, "model.sharing.depths", "must not be empty"),
        ({"kind": "hierarchical", "depths": {"prise": 1}}, "model.sharing.depths.prise", "Did you mean 'price'?"),
        ({"kind": "hierarchical", "depths": {"price": 3}}, "model.sharing.depths.price", "has 2 layers, got 3"),
        ({"kind": "ple", "levels": 3}, "model.sharing.levels", "it has 2, got 3 levels"),
        ({"kind": "grouped"}, "model.sharing.groups", "'groups' is missing"),
        ({"kind": "grouped", "groups": [["price", "sold"]]}, "model.sharing.groups", "'region' is in none of them"),
        ({"kind": "grouped", "groups": [["prise"]]}, "model.sharing.groups", "Did you mean 'price'?"),
        (
            {"kind": "grouped", "groups": [["price", "sold", "price"]]},
            "model.sharing.groups",
            "'price' stands in them 2",
        ),
    ],
)
def test_a_mistake_names_its_place_and_the_mend(values, place, words):
    found = problems({"model.sharing": values})
    assert any(problem.split(": ")[0] == place and words in problem for problem in found), found


def test_a_single_task_study_shares_nothing():
    study = make_study({"model.sharing.kind": "hierarchical", "model.sharing.depths.price": 1})
    assert study.single_task("sold").model.sharing.kind == "hard"


# --- the penalty of soft sharing -------------------------------------------------------------------------------------


def test_the_penalty_is_half_the_mean_squared_distance_between_pairs_of_encoders():
    study = make_study({"model.sharing.kind": "soft", "model.sharing.strength": 0.3})
    model = build_model(study, 6, make_prepared(study).targets)
    assert model.penalty() < 1e-10, "encoders start from the same weights"
    with torch.no_grad():
        for parameter in model.sharing.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theta = [torch.cat([row.parameter[row.rows].flatten() for row in model.sharing.own(task)]) for task in range(3)]
    pairs = sum((a - b).square().sum() for a in theta for b in theta)
    torch.testing.assert_close(model.penalty(), 0.3 * pairs / (2 * 3**2))


def test_the_loop_descends_the_penalty_with_the_losses():
    def distance_after_training(strength: float) -> float:
        study = make_study({"model.sharing.kind": "soft", "model.sharing.strength": strength, "training.epochs": 2})
        run = TrainingRun(study, make_prepared(study))
        list(run.epochs())
        return sum(p.var(0).sum().item() for p in run.model.sharing.encoders.by_copy())

    apart, together = map(distance_after_training, [0.0, 10.0])
    assert apart > 20 * together > 0


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_have_no_influence_on_each_other():
    """Whatever a task of another group learns from, its own group's predictions stay the same to the last bit."""
    groups = {"model.sharing": {"kind": "grouped", "groups": [["price", "region"], ["sold"]]}, "training.epochs": 2}
    outputs = []
    for flip in (1.0, -1.0):
        study = make_study(groups)
        prepared = make_prepared(study)
        prepared.train.targets[:, 1] = (0.5 + flip * (prepared.train.targets[:, 1] - 0.5)) * prepared.train.mask[:, 1]
        run = TrainingRun(study, prepared)
        list(run.epochs())
        outputs.append([run.outputs(prepared.test)[:, columns] for columns in run.model.layout.columns])
    (price, sold, region), (price_after, sold_after, region_after) = outputs
    assert torch.equal(price, price_after)
    assert torch.equal(region, region_after)
    assert not torch.allclose(sold, sold_after)


@pytest.mark.parametrize(("most", "partitions"), [(4, 15), (2, 8)])
def test_the_space_of_groupings_draws_every_partition_once_and_within_the_number_of_groups(most, partitions):
    tasks = {name: {"kind": "regression"} for name in "abcd"}
    study = make_study(tasks=tasks)
    if most == 2:
        study = study.with_values({"model.sharing": {"kind": "grouped", "groups": [["a", "b", "c"], ["d"]]}})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: dict[frozenset, set] = {}
    for _ in range(300):
        trial = search.ask()
        sharing = study.with_values(groupings(trial, study)).model.sharing
        found.setdefault(frozenset(map(frozenset, sharing.groups)), set()).add(frozenset(trial.params.items()))
    assert len(found) == partitions  # the Bell number of 4; S(4, 1) + S(4, 2)
    assert all(len(drawn) == 1 for drawn in found.values()), "two suggestions mean the same grouping"


# --- the search space ------------------------------------------------------------------------------------------------


def trials(study: Study, count: int = 60) -> list[dict[str, object]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [sharing(search.ask(), study) for _ in range(count)]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_space_draws_every_scheme_with_its_own_keys_for_encoders_of_any_depth(depth):
    study = make_study({"model.encoder.depth": depth})
    drawn = [study.with_values(values) for values in trials(study)]  # each validates
    kinds = {trial.model.sharing.kind for trial in drawn}
    assert kinds == {"hard", "soft", "cross_stitch", "hierarchical", "attention", "mmoe", "cgc", "ple"}
    hierarchical = [trial.model.sharing for trial in drawn if trial.model.sharing.kind == "hierarchical"]
    assert {layer for sharing in hierarchical for layer in sharing.depths.values()} == set(range(1, depth + 1))


def test_the_space_follows_the_depth_that_the_trial_has_drawn():
    study = make_study({"model.encoder.depth": 4})
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = search.ask()
        depth = trial.suggest_int("model.encoder.depth", 1, 4)
        assert study.with_values({"model.encoder.depth": depth, **sharing(trial, study)}).model.encoder.depth == depth


def test_an_encoder_of_the_users_is_given_schemes_that_need_no_layers():
    study = make_study({"model.encoder": {"kind": "nets:Mine"}})
    assert {values["model.sharing.kind"] for values in trials(study)} == {"hard", "soft", "mmoe", "cgc"}


def test_one_task_has_nothing_to_share():
    assert trials(make_study(tasks={"price": {"kind": "regression"}}), count=1) == [{}]


# --- the tasks of the paper on MMoE ----------------------------------------------------------------------------------


def mmoe_table(**arguments):
    path = Path(__file__).parent.parent / "benchmarks" / "data_mmoe.py"
    spec = importlib.util.spec_from_file_location("data_mmoe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.table(**arguments)


def test_synthetic_tasks_are_as_related_as_asked_for():
    related, half, unrelated = (
        mmoe_table(correlation=p, rows=4000, inputs=10)[["first", "second"]].corr().iloc[0, 1] for p in (1.0, 0.5, 0.0)
    )
    assert related > 0.99
    assert 0.2 < half < 0.8
    assert abs(unrelated) < 0.06


def test_synthetic_labels_are_functions_of_orthogonal_projections():
    table = mmoe_table(correlation=0.0, rows=4000, inputs=6)
    features = table.filter(regex="^x")
    slopes = np.linalg.lstsq(features, table[["first", "second"]], rcond=None)[0]
    unit = slopes / np.linalg.norm(slopes, axis=0)
    assert abs(unit[:, 0] @ unit[:, 1]) < 0.1
    pd_same = mmoe_table(correlation=0.0, rows=4000, inputs=6)
    assert table.equals(pd_same)
    with pytest.raises(ValueError, match="-1 to 1, got 2"):
        mmoe_table(correlation=2.0)
