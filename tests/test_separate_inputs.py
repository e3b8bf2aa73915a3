"""Tasks with tables of their own: read, split and trained together, also when their sizes differ a thousandfold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from polyshot.data.prepare import prepare
from polyshot.errors import DataError, StudyError
from polyshot.study import Study
from polyshot.training.loop import TrainingRun


def rows(count: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"x": random.normal(size=count), "y": random.normal(size=count)})
    return table, (table["x"] - 0.5 * table["y"] + random.normal(0, 0.1, count)).to_numpy()


@pytest.fixture
def study(tmp_path) -> Study:
    """`price` in 4,000 rows, `sold` in 40 of another table, `town` in 120 of a third that lacks a column."""
    table, value = rows(4000, 0)
    table.assign(price=100 + 10 * value).to_csv(tmp_path / "prices.csv", index=False)
    table, value = rows(40, 1)
    table.assign(label=np.where(value > 0, "yes", "no"), only_here=1.0 * np.arange(40)).to_csv(
        tmp_path / "sales.csv", index=False
    )
    table, value = rows(120, 2)
    towns = np.array(["A", "B", "C"])[np.digitize(value, [-0.5, 0.5])]
    table.drop(columns="y").assign(label=towns, price=1.0).to_csv(tmp_path / "towns.csv", index=False)
    (tmp_path / "study.yaml").write_text(
        "name: apart\n"
        "data: {}\n"
        "tasks:\n"
        "  price: {kind: regression, source: prices.csv}\n"
        "  sold: {kind: binary, source: sales.csv, target: label}\n"
        "  town: {kind: multiclass, source: towns.csv, target: label}\n"
        "model: {encoder: {width: 16}}\n"
        "training: {epochs: 2, batch_size: 64, sampling: {kind: joint}}\n"
        f"storage: {tmp_path / 'runs'}\n"
    )
    return Study.load(tmp_path / "study.yaml")


def test_a_row_has_labels_of_its_own_tables_tasks_only(study):
    prepared = prepare(study)
    total = sum(map(len, (prepared.train, prepared.validation, prepared.test)))
    assert total == 4000 + 40 + 120
    for examples in (prepared.train, prepared.validation, prepared.test):
        assert (examples.mask.sum(1) == 1).all()
        shares = examples.mask.sum(0) / torch.tensor([4000, 40, 120])
        assert shares.max() - shares.min() < 0.03  # each table is split like the whole
    assert [target.task for target in prepared.targets] == ["price", "sold", "town"]
    assert prepared.targets[1].classes == ["no", "yes"]
    assert {"x", "y", "only_here"} == set(prepared.features.columns)
    (note,) = [note for note in prepared.notes if "price" in note]
    assert "task 'town'" in note


def test_tasks_of_one_table_share_its_rows(study, tmp_path):
    both = study.to_dict()
    both["tasks"]["value"] = {"kind": "regression", "source": "prices.csv", "target": "price"}
    together = Study.from_dict(both)
    together._folder = tmp_path
    prepared = prepare(together)
    assert len(prepared.train) + len(prepared.validation) + len(prepared.test) == 4160
    mask = prepared.train.mask
    assert torch.equal(mask[:, 0], mask[:, 3])
    assert torch.equal(prepared.train.targets[:, 0], prepared.train.targets[:, 3])


@pytest.mark.parametrize("kind", ["rows", "joint", "proportional", "temperature", "uniform", "round_robin", "dynamic"])
def test_tables_of_very_different_sizes_train_together_and_go_on_exactly(study, kind):
    study = study.with_values({"training.sampling.kind": kind, "training.early_stopping": None})
    prepared = prepare(study)
    whole = TrainingRun(study, prepared)
    for _ in whole.epochs():
        pass
    assert all(np.isfinite(value) for value in whole.history[-1].metrics.values())
    first = TrainingRun(study, prepared)
    next(first.epochs())
    second = TrainingRun(study, prepared)
    second.load_state_dict(first.state_dict())
    for _ in second.epochs():
        pass
    losses = [[epoch.metrics["train/loss"] for epoch in run.history] for run in (whole, second)]
    assert losses[0] == losses[1]


def test_joint_sampling_teaches_a_small_task_that_rows_would_drown(study):
    def accuracy(kind: str) -> float:
        run = TrainingRun(study.with_values({"training.sampling.kind": kind, "training.epochs": 10}), prepared)
        for _ in run.epochs():
            pass
        return run.history[-1].metrics["val/town/accuracy"]

    prepared = prepare(study)
    assert accuracy("joint") > accuracy("rows")


def test_a_tasks_learning_rate_factor_of_zero_leaves_its_head_as_it_was(study):
    study = study.with_values({"tasks.town.learning_rate_factor": 0.0, "tasks.sold.learning_rate_factor": 0.5})
    prepared = prepare(study)
    run = TrainingRun(study, prepared)
    before = [
        rows.parameter[rows.rows].detach().clone() for task in range(3) for rows in run.model.task_parameters(task)
    ]
    next(run.epochs())
    after = [rows.parameter[rows.rows].detach() for task in range(3) for rows in run.model.task_parameters(task)]
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    per_task = len(moved) // 3
    assert moved == [True] * 2 * per_task + [False] * per_task


def test_half_a_learning_rate_moves_half_as_far(study):
    def moves(factor: float) -> torch.Tensor:
        run = TrainingRun(
            study.with_values(
                {
                    "tasks.price.learning_rate_factor": factor,
                    "training.sampling.kind": "rows",
                    "training.batch_size": 5000,  # one step
                    "training.schedule.kind": "constant",
                }
            ),
            prepared,
        )
        rows = run.model.task_parameters(0)[0]
        before = rows.parameter[rows.rows].detach().clone()
        next(run.epochs())
        return rows.parameter[rows.rows].detach() - before

    prepared = prepare(study)
    torch.testing.assert_close(moves(0.5), 0.5 * moves(1.0), rtol=1e-4, atol=1e-8)


def test_batches_of_one_task_refuse_methods_that_compare_tasks(study):
    with pytest.raises(StudyError, match=r"training.sampling.kind: 'uniform' gives batches of one task .* use joint"):
        study.with_values({"training.sampling.kind": "uniform", "balance.kind": "pcgrad"})


MISTAKES = {
    "no_table": ({"tasks.sold.source": None}, r"data.source: .*'sold' has no source of its own; name a table"),
    "table_of_nobody": ({"data.source": "prices.csv"}, r"data.source: .*read by no task.*remove it"),
    "arguments": ({"tasks.sold.arguments": {"a": 1}}, r"'arguments' are for a source function"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_sources_is_one_sentence(study, case):
    values, words = MISTAKES[case]
    with pytest.raises(StudyError, match=words) as mistake:
        study.with_values(values)
    assert len(mistake.value.problems) == 1


def test_faults_of_a_tasks_table_name_the_task(study, tmp_path):
    with pytest.raises(DataError, match=r"tasks.sold: the table has no column 'lable'. Did you mean 'label'\?"):
        prepare(study.with_values({"tasks.sold.target": "lable"}))
    with pytest.raises(DataError, match=r"tasks.sold.source: the task has a table of its own|tasks.price.source"):
        prepare(study, pd.DataFrame({"x": [1.0]}))
    sales = pd.read_csv(tmp_path / "sales.csv").assign(sold=1)
    sales.to_csv(tmp_path / "sales.csv", index=False)
    with pytest.raises(DataError, match=r"tasks.sold: its table has a column 'sold' beside the target 'label'"):
        prepare(study)


def test_groups_stay_together_over_tables(tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("a", 200), ("b", 100)):
        table, value = rows(count, 3)
        table.assign(school=random.integers(0, 20, count), **{name: value}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    study = Study.from_dict(
        {
            "name": "grouped",
            "data": {"group": "school"},
            "tasks": {
                name: {"kind": "regression", "source": str(Path(tmp_path, f"{name}.csv"))} for name in ("a", "b")
            },
        }
    )
    prepared = prepare(study)
    schools = pd.concat([pd.read_csv(tmp_path / f"{name}.csv") for name in ("a", "b")], ignore_index=True)["school"]
    parts = [set(schools.iloc[prepared.rows[split]]) for split in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
