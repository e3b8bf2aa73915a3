"""What tasks are to each other: planted affinities are found, each method is its paper's equation, and the command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers_training import make_prepared, make_study

from polyshot.affinities.gradients import cosine, gradient_affinity
from polyshot.affinities.grouping import best_groups
from polyshot.affinities.lookahead import look_ahead, lookahead_affinity
from polyshot.affinities.pairwise import pairwise_affinity
from polyshot.affinities.probing import probed
from polyshot.affinities.subsets import elsewhere, of_tasks
from polyshot.data.prepare import Examples, Prepared, prepare
from polyshot.models.multitask import build_model
from polyshot.study import Study
from polyshot.training.baselines import train_baselines
from polyshot.training.loop import TrainingRun
from polyshot.training.losses import TaskLosses

PLANTED = """\
name: planted
data: {source: planted.csv, split: {validation: 0.7, test: 0.1}}
tasks:
  a: {kind: regression}
  b: {kind: regression}
  c: {kind: regression}
  d: {kind: regression}
model:
  encoder: {width: 16, depth: 2}
training:
  epochs: 20
  batch_size: 64
  optimiser: {learning_rate: 0.01}
scale: {device: cpu, threads: 1}
tracking: {models: false}
"""


def planted_table(rows: int = 1000) -> pd.DataFrame:
    """Targets a and c are noisy sights of one function of the features, b and d of another, of other features."""
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, 8))
    first, second = (np.tanh(features[:, part] @ random.normal(size=4)) for part in (slice(4), slice(4, 8)))
    table = pd.DataFrame(features, columns=[f"x{place}" for place in range(8)])
    for name, signal in (("a", first), ("b", second), ("c", first), ("d", second)):
        table[name] = 2 * signal + random.normal(size=rows)
    return table


@pytest.fixture(scope="module")
def planted() -> tuple[Study, Prepared]:
    study = Study.from_dict(yaml.safe_load(PLANTED))
    return study, prepare(study, planted_table())


def measured(method: str, study: Study, prepared: Prepared, folder) -> np.ndarray:
    if method == "gradients":
        return gradient_affinity(study, prepared).cosine
    if method == "lookahead":
        return lookahead_affinity(study, prepared)
    return pairwise_affinity(study, prepared, train_baselines(study, prepared, folder), folder)


@pytest.mark.parametrize("method", ["gradients", "lookahead", "pairwise"])
def test_planted_pairs_are_found(method, planted, tmp_path):
    affinity = measured(method, *planted, tmp_path)
    related = np.array([[a != b and a % 2 == b % 2 for b in range(4)] for a in range(4)])
    unrelated = ~related & ~np.eye(4, dtype=bool)
    assert affinity[related].mean() > affinity[unrelated].mean()
    if method != "pairwise":  # a single training of each pair is not as sure
        assert affinity[related].min() > affinity[unrelated].max()
    assert [group.serves for group in best_groups(affinity, 2)] == [(0, 2), (1, 3)]


def test_related_tasks_seldom_conflict_and_unrelated_ones_often_do(planted):
    conflict = gradient_affinity(*planted).conflict
    np.testing.assert_array_equal(conflict, conflict.T)
    assert conflict[0, 2] < 0.2 < conflict[0, 1]


# --- the papers' equations -------------------------------------------------------------------------------------------


def tiny(tasks: dict[str, object] | None = None, **encoder: object):
    study = make_study({f"model.encoder.{key}": value for key, value in encoder.items()}, tasks)
    prepared = make_prepared(study, missing=0.3)
    model = build_model(study, 6, prepared.targets).double()
    losses = TaskLosses(study, prepared.targets, model.layout)
    batch = Examples(prepared.train.features.double(), prepared.train.targets.double(), prepared.train.mask)

    def mean_losses(outputs, rows):
        return losses(outputs, rows.targets, rows.mask) / rows.mask.sum(0).clamp(min=1)

    return study, prepared, model, mean_losses, batch


@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_cosines_are_those_of_autograd_s_gradients_averaged_over_the_batches(normalisation):
    study, prepared, *_ = tiny(normalisation=normalisation, dropout=0.2)
    study = study.with_values({"training.epochs": 2})

    def by_hand(model, mean_losses, batch):
        shared = model.shared_parameters()
        rows = [
            torch.autograd.grad(loss, shared, retain_graph=True) for loss in mean_losses(model(batch.features), batch)
        ]
        flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        return torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2).detach().numpy()

    looks = np.array(list(probed(study, prepared, by_hand)))
    found = gradient_affinity(study, prepared)
    np.testing.assert_allclose(found.cosine, looks.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.conflict, (looks < 0).mean(0))


def test_a_task_without_a_gradient_has_no_cosine():
    found = cosine(np.array([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found[:2, :2], [[1, 0.5], [0.5, 1]])
    assert np.isnan(found[2]).all()


def test_looking_ahead_is_the_equation_worked_out_for_a_linear_model():
    """One linear layer h = W x + w and heads v_t: the step's losses by hand, without autograd."""
    tasks = {name: {"kind": "regression"} for name in ("first", "second")}
    _, prepared, model, mean_losses, batch = tiny(tasks, width=3, depth=1)
    model.sharing.encoder.blocks[0] = model.sharing.encoder.blocks[0][0]  # no activation
    model.shared_parameters()
    x, y, known = (tensor.numpy() for tensor in (batch.features, batch.targets, batch.mask))
    layer, heads = model.sharing.encoder.blocks[0], model.heads.linear
    (w, bias), (v, c) = ([p.detach().numpy() for p in module.parameters()] for module in (layer, heads))

    def loss(w, bias, task):
        residuals = (x @ w.T + bias) @ v[task] + c[task] - y[:, task]
        return (residuals**2)[known[:, task]].mean()

    expected = np.empty((2, 2))
    for a in range(2):
        residuals = np.where(known[:, a], (x @ w.T + bias) @ v[a] + c[a] - y[:, a], 0) * 2 / known[:, a].sum()
        stepped = w - 0.1 * np.outer(v[a], residuals @ x), bias - 0.1 * v[a] * residuals.sum()
        expected[a] = [1 - loss(*stepped, b) / loss(w, bias, b) for b in range(2)]
    np.testing.assert_allclose(look_ahead(model, mean_losses, batch, 0.1, prepared.labels), expected, rtol=1e-9)
    assert expected.diagonal().min() > 0


def test_a_small_step_s_affinity_is_the_inner_product_of_the_gradients():
    _, prepared, model, mean_losses, batch = tiny()
    losses = mean_losses(model(batch.features), batch)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.shared_parameters(), retain_graph=True)])
        for loss in losses
    ]
    jacobian = torch.stack(rows)
    expected = (jacobian @ jacobian.T / losses).detach().numpy()
    np.testing.assert_allclose(
        look_ahead(model, mean_losses, batch, 1e-6, prepared.labels) / 1e-6, expected, rtol=1e-3, atol=1e-5
    )


def test_a_task_that_a_batch_does_not_label_is_left_out_of_it():
    _, prepared, model, mean_losses, batch = tiny()
    batch.mask[:, 1] = False
    found = look_ahead(model, mean_losses, batch, 0.1, prepared.labels)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


def test_a_training_goes_on_as_if_nobody_had_looked():
    study, prepared, *_ = tiny(normalisation="batch", dropout=0.3)
    undisturbed = TrainingRun(study, prepared)
    curve = [epoch.metrics["train/loss"] for epoch in undisturbed.epochs()]
    seen = []

    def watch(model, mean_losses, batch):
        losses = mean_losses(model(batch.features), batch)
        losses.sum().backward()
        seen.append(losses.sum().item())
        return np.zeros((3, 3))

    list(probed(study, prepared, watch))
    with_dropout_off = TrainingRun(study, prepared)
    assert [epoch.metrics["train/loss"] for epoch in with_dropout_off.epochs()] == curve
    assert len(seen) >= study.training.epochs
    assert np.mean(seen[-5:]) < np.mean(seen[:5])


def test_pairs_are_trained_once_and_compared_with_learning_alone(planted, tmp_path):
    study, prepared = planted
    study = study.with_values({"training.epochs": 3})
    alone = train_baselines(study, prepared, tmp_path)
    affinity = pairwise_affinity(study, prepared, alone, tmp_path)
    assert not affinity.diagonal().any()
    pair = of_tasks(study, ["b", "d"])
    run = TrainingRun(pair, prepare(pair, planted_table()))
    list(run.epochs())
    together = run.evaluate(prepared.for_tasks(["b", "d"]).validation)
    expected = 1 - together["d/rmse"] / alone["d"].validation["d/rmse"]
    assert affinity[1, 3] == pytest.approx(expected, rel=1e-5)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(pairwise_affinity(study, prepared, alone, tmp_path), affinity)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


# --- some tasks as a study -------------------------------------------------------------------------------------------


def test_a_group_s_study_names_its_tasks_only_and_never_learns_from_the_others_targets():
    study = make_study(
        {
            "model.sharing": {"kind": "hierarchical", "depths": {"price": 1, "sold": 2}},
            "search.objective": "sold/roc_auc",
            "training.monitor": "sold/f1",
            "search.space": {"tasks.sold.weight": {"low": 0.1, "high": 1.0}, "training.epochs": {"choice": [1, 2]}},
        }
    )
    group = of_tasks(study, ["region", "price"])
    assert list(group.tasks) == ["price", "region"]
    assert group.data.ignore == ["sold"]
    assert group.data.split.stratify == ["sold"]  # the rows of each split stay the same
    assert group.model.sharing.depths == {"price": 1}
    assert group.search.objective == "improvement"
    assert group.training.monitor == "loss"
    assert list(group.search.space) == ["training.epochs"]
    assert of_tasks(study, ["region"]) == study.single_task("region")


def test_groups_of_grouped_sharing_lose_the_tasks_that_are_left_out():
    study = make_study({"model.sharing": {"kind": "grouped", "groups": [["price", "sold"], ["region"]]}})
    assert of_tasks(study, ["price", "sold"]).model.sharing.groups == [["price", "sold"]]
    assert of_tasks(study, ["price", "region"]).model.sharing.groups == [["price"], ["region"]]


def test_a_study_for_elsewhere_finds_its_data(tmp_path):
    (tmp_path / "study.yaml").write_text(PLANTED)
    study = elsewhere(Study.load(tmp_path / "study.yaml"), "other-" + "x" * 200)
    assert study.data.source == str(tmp_path / "planted.csv")
    assert len(study.name) == 100
    function = make_study({"data.source": "package.module:function"})
    assert elsewhere(function, "other").data.source == "package.module:function"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planted_file(tmp_path):
    planted_table().to_csv(tmp_path / "planted.csv", index=False)
    (tmp_path / "study.yaml").write_text(PLANTED)
    return tmp_path / "study.yaml"


def test_the_command_prints_matrix_and_groups_records_them_and_writes_studies_that_train(polyshot, planted_file):
    shown = polyshot("affinity", planted_file)
    assert shown.code == 0, shown.err
    folder = planted_file.parent / "polyshot-runs/planted/affinity-1"
    commands = [line.split(maxsplit=1)[1] for line in shown.out.splitlines() if line.startswith("train ")]
    assert commands == [
        "polyshot train polyshot-runs/planted/affinity-1/groups/1-a-c.yaml",
        "polyshot train polyshot-runs/planted/affinity-1/groups/2-b-d.yaml",
    ]
    assert "model.sharing={kind: grouped, groups: [[a, c], [b, d]]}" in shown.out
    with (folder / "affinity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row[""] for row in rows] == list("abcd")
    assert float(rows[0]["c"]) > float(rows[0]["b"])
    assert json.loads((folder / "groups.json").read_text())[0]["tasks"] == ["a", "c"]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{planted_file.parent}/polyshot-runs/mlflow.db")
    [experiment] = [found for found in client.search_experiments() if found.name == "planted"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["polyshot.kind"] == "affinity"
    assert run.data.metrics["affinity/a/c"] == pytest.approx(float(rows[0]["c"]))
    assert 0 <= run.data.metrics["conflict/a/c"] <= run.data.metrics["conflict/a/b"]
    for place, names in {
        "": {"study.yaml", "affinity.csv", "conflict.csv", "groups.json", "groups", "plots", "report.html"},
        "plots": {"plots/affinity.png"},
        "groups": {"groups/1-a-c.yaml", "groups/2-b-d.yaml"},
    }.items():
        assert {file.path for file in client.list_artifacts(run.info.run_id, place)} == names

    trained = polyshot(*commands[0].split()[1:], "--json", "--set", "training.epochs=2")
    assert trained.code == 0, trained.err
    assert {row["task"] for row in trained.json()["metrics"]} == {"a", "c"}
    together = "model.sharing={kind: grouped, groups: [[a, c], [b, d]]}"
    trained = polyshot(
        "train", planted_file, "--no-baselines", "--json", "--set", together, "--set", "training.epochs=2"
    )
    assert trained.code == 0, trained.err


def test_another_number_of_networks_measures_nothing_again(polyshot, planted_file):
    few = ("--json", "--method", "lookahead", "--set", "training.epochs=2")
    first = polyshot("affinity", planted_file, "--networks", 1, *few).json()
    assert first["groups"][0]["tasks"] == list("abcd")
    [kept] = (planted_file.parent / "polyshot-runs/planted/affinities").iterdir()
    before = kept.stat().st_mtime_ns
    second = polyshot("affinity", planted_file, "--networks", 4, *few).json()
    assert second["affinity"] == first["affinity"]
    assert kept.stat().st_mtime_ns == before
    assert second["conflict"] is None
    assert second["folder"].endswith("affinity-2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--networks", 0], "--networks: must be from 1 to 4, the number of tasks, got 0"),
        (["--networks", 5], "--networks: must be from 1 to 4, the number of tasks, got 5"),
        (["--method", "gradient"], "Did you mean 'gradients'?"),
        (["--set", "tasks={a: {kind: regression}}"], "tasks: affinity is between tasks and this study has one"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(polyshot, planted_file, arguments, words):
    shown = polyshot("affinity", planted_file, *arguments)
    assert shown.code == 2
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (planted_file.parent / "polyshot-runs/planted/affinity-1").exists()
