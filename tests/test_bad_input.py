"""Bad input: exit code 2, one sentence that names the place and the mend, no traceback, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import STUDY, learnable_table
from PIL import Image

Prepare = Callable[[Path], None]


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Prepare:
    """A study whose table is changed first."""

    def prepare(folder: Path) -> None:
        houses = learnable_table()
        changed = change(houses)
        (houses if changed is None else changed).to_csv(folder / "houses.csv", index=False)

    return prepare


def text(content: bytes, name: str = "houses.csv") -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare


def study(*changes: tuple[str, str]) -> Prepare:
    """A study file that is changed first, over a good table."""

    def prepare(folder: Path) -> None:
        learnable_table().to_csv(folder / "houses.csv", index=False)
        content = STUDY
        for old, new in changes:
            assert old in content
            content = content.replace(old, new)
        (folder / "study.yaml").write_text(content)

    return prepare


def assign(column: str, value: object, rows: slice = slice(None)) -> Callable[[pd.DataFrame], None]:
    def change(houses: pd.DataFrame) -> None:
        houses[column] = houses[column].astype(object)
        houses.loc[houses.index[rows], column] = value

    return change


def photos(name: str) -> Prepare:
    """Images of one class."""

    def prepare(folder: Path) -> None:
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "photos" / name / "1.png")

    return prepare


PHOTOS = (
    ("source: houses.csv", "source: houses.csv\n  columns: {photo: image}"),
    ("{width: 16, depth: 1}", "{kind: mixed, image: {kind: cnn}}"),
)
GROUPED = ("source: houses.csv", "source: houses.csv\n  group: street")


def tags(content: str = "{kind: multilabel, target: [garden, flat]}", **columns: object) -> Prepare:
    """A multilabel task beside the others, of a column that is there and one that `columns` adds."""

    def prepare(folder: Path) -> None:
        learnable_table().assign(**columns).to_csv(folder / "houses.csv", index=False)
        (folder / "study.yaml").write_text(STUDY.replace("tasks:\n", f"tasks:\n  tags: {content}\n"))

    return prepare


CASES: dict[str, tuple[Prepare, list[str]]] = {
    "wrong path": (study(("houses.csv", "house.csv")), ["house.csv", "Did you mean 'houses.csv'?"]),
    "empty file": (text(b""), ["houses.csv", "empty"]),
    "header only": (text(b"size,price,sold\n"), ["houses.csv", "no rows"]),
    "not text": (text(b"size,price,sold\n\xff\xfe\x00,1,2\n"), ["houses.csv", "UTF-8"]),
    "ragged rows": (text(b"size,price,sold\n1,2,yes\n1,2,3,4,5\n"), ["houses.csv", "line 3"]),
    "missing target column": (table(lambda t: t.drop(columns="price")), ["price", "no column"]),
    "misspelt target": (study(("  price:", "  prise:")), ["prise", "Did you mean 'price'?"]),
    "duplicate columns": (text(b"size,size,price,sold\n1,1,2,yes\n"), ["'size'", "more than once"]),
    "text in a numeric target": (table(assign("price", "dear", slice(3, 4))), ["price", "dear"]),
    "infinite target": (table(assign("price", float("inf"), slice(3, 4))), ["price", "inf"]),
    "one class only": (table(assign("sold", "yes")), ["sold", "one class"]),
    "all labels missing": (table(assign("sold", None)), ["sold", "label"]),
    "three classes in a binary task": (
        study(("  sold: {kind: binary}", "  town: {kind: binary}")),
        ["town", "multiclass"],
    ),
    "positive class that is not there": (study(("kind: binary", "kind: binary, positive: maybe")), ["maybe", "sold"]),
    "label column that is not there": (tags(), ["tasks.tags", "no column 'flat'"]),
    "label column that is not binary": (
        tags("{kind: multilabel, target: [garden, town]}"),
        ["tasks.tags", "'town' holds", "row", "true or false", "task of its own"],
    ),
    "label of one class": (
        tags(flat=0),
        ["tasks.tags", "one class only of 'flat'", "take it out of tasks.tags.target"],
    ),
    "label without labels": (tags(flat=None), ["tasks.tags", "'flat' is empty", "take it out of tasks.tags.target"]),
    "one label only": (tags("{kind: multilabel, target: [garden]}"), ["tasks.tags.target", "at least 2"]),
    "labels named twice": (
        tags("{kind: multilabel, target: [garden, garden]}"),
        ["tasks.tags.target", "'garden' 2 times"],
    ),
    "label of another task": (
        tags("{kind: multilabel, target: [garden, sold]}"),
        ["tasks", "target column 'sold' too"],
    ),
    "infinite feature": (table(assign("size", float("inf"), slice(3, 5))), ["size", "inf"]),
    "no features left": (
        study(("source: houses.csv", "source: houses.csv\n  features: []")),
        ["feature column"],
    ),
    "unknown feature": (
        study(("source: houses.csv", "source: houses.csv\n  features: [sise]")),
        ["sise", "Did you mean 'size'?"],
    ),
    "unknown ignored column": (
        study(("source: houses.csv", "source: houses.csv\n  ignore: [twon]")),
        ["twon", "Did you mean 'town'?"],
    ),
    "unknown group": (
        study(("source: houses.csv", "source: houses.csv\n  group: stret")),
        ["stret", "Did you mean 'street'?"],
    ),
    "one group only": (
        both(study(GROUPED), table(assign("street", 1))),
        ["street", "group"],
    ),
    "too few rows": (table(lambda t: t.head(2)), ["row"]),
    "unknown key": (study(("epochs: 4", "epoch: 4")), ["study.yaml:10", "Did you mean 'epochs'?"]),
    "wrong type": (study(("epochs: 4", "epochs: four")), ["study.yaml:10 training.epochs", "integer"]),
    "negative weight": (study(("kind: binary", "kind: binary, weight: -1")), ["tasks.sold.weight", "greater"]),
    "weights that sum to zero": (
        study(("{kind: regression}", "{kind: regression, weight: 0}"), ("{kind: binary}", "{kind: binary, weight: 0}")),
        ["tasks", "sum to 0"],
    ),
    "unreadable Parquet": (
        both(study(("houses.csv", "houses.parquet")), text(b"PAR1no", "houses.parquet")),
        ["houses.parquet", "Parquet"],
    ),
    "folder without tables": (
        both(study(("houses.csv", "empty")), lambda folder: (folder / "empty").mkdir()),
        ["empty", "no table"],
    ),
    "source module that is not there": (study(("houses.csv", "nowhere:load")), ["data.source", "nowhere"]),
    "source function that is not there": (study(("houses.csv", "json:laod")), ["data.source", "Did you mean 'load'?"]),
    "more workers than CPUs": (study(("training:", "scale: {workers: 4096}\ntraining:")), ["scale.workers", "4096"]),
    "no GPU": (study(("training:", "scale: {device: cuda}\ntraining:")), ["scale.device", "GPU"]),
    "half precision without a GPU": (
        study(("epochs: 4", "epochs: 4\n  precision: float16")),
        ["training.precision", "GPU"],
    ),
    "unreachable tracking server": (
        study(("training:", "tracking: {uri: 'http://127.0.0.1:9'}\ntraining:")),
        ["tracking.uri", "127.0.0.1:9"],
    ),
    "unknown tracking scheme": (
        study(("training:", "tracking: {uri: 'gopher://x'}\ntraining:")),
        ["tracking.uri", "gopher"],
    ),
    "learning rate that diverges": (
        study(("epochs: 4", "epochs: 4\n  optimiser: {kind: sgd, learning_rate: 1e30}")),
        ["diverged", "learning_rate"],
    ),
    "image that is not there": (
        both(study(*PHOTOS), table(lambda t: t.assign(photo="nowhere.png"))),
        ["'photo' in row", "nowhere.png", "not there"],
    ),
    "image that is none": (
        both(study(*PHOTOS), table(lambda t: t.assign(photo="photo.png")), text(b"no image", "photo.png")),
        ["'photo' in row", "photo.png", "no image"],
    ),
    "folder of one class": (
        both(study(("houses.csv", "photos")), photos("day")),
        ["photos", "one folder only, 'day'"],
    ),
    "encoder that reads no numbers": (
        study(("{width: 16, depth: 1}", "{kind: cnn}")),
        ["model.encoder", "'cnn' reads images only", "mixed"],
    ),
    "encoder without outputs": (
        study(("{width: 16, depth: 1}", "{kind: 'torch.nn:Identity'}")),
        ["model.encoder.kind", "outputs"],
    ),
}


def refused(outcome, folder: Path, words: list[str]) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in outcome.err
    # No run was begun: neither a store nor a run's folder is left behind, unless training itself failed.
    if "diverged" not in words:
        assert not list(folder.glob("polyshot-runs/mlflow.db*"))
        assert not list(folder.glob("polyshot-runs/*/train-*"))


@pytest.mark.parametrize("case", CASES)
def test_training_refuses(case, polyshot, houses):
    prepare, words = CASES[case]
    prepare(houses.parent)
    if "GPU" in case and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused(polyshot("train", houses), houses.parent, words)


SEARCH_CASES: dict[str, tuple[tuple[str, str], list[str]]] = {
    "space that names an unknown key": (
        ("training:", "search: {space: {training.epoch: {low: 1, high: 2}}}\ntraining:"),
        ["search.space.training.epoch", "Did you mean 'epochs'?"],
    ),
    "space that is not there": (
        ("training:", "search: {spaces: [task_weight]}\ntraining:"),
        ["task_weight", "Did you mean 'task_weights'?"],
    ),
    "space function that is not there": (
        ("training:", "search: {spaces: ['json:space']}\ntraining:"),
        ["search.spaces", "json"],
    ),
    "trials larger than the machine": (  # which is known before Ray starts
        ("training:", "scale: {threads: 4096}\ntraining:"),
        ["scale.threads 4096", "CPUs of this machine"],
    ),
}


@pytest.mark.parametrize("case", SEARCH_CASES)
def test_searching_refuses(case, polyshot, houses):
    change, words = SEARCH_CASES[case]
    study(change)(houses.parent)
    refused(polyshot("search", houses), houses.parent, words)


def test_prediction_refuses_what_it_cannot_find(polyshot, houses):
    refused(polyshot("predict", "nothing", "houses.csv"), houses.parent, ["'nothing'", "give one of these"])


def test_comparison_refuses_an_unknown_study(polyshot, houses):
    refused(polyshot("compare", "nothing"), houses.parent, ["'nothing'"])
    refused(polyshot("compare", houses), houses.parent, ["no runs", "polyshot train"])


def test_the_study_s_path_is_checked(polyshot, houses):
    refused(polyshot("train", "stduy.yaml"), houses.parent, ["stduy.yaml", "no such file"])
    refused(polyshot("train", "."), houses.parent, ["folder"])
    refused(polyshot("train", houses, "--set", "training.epochs"), houses.parent, ["--set", "KEY=VALUE"])
