"""The study as a whole: its sections, reading and writing it, and its variations.

A trial is a study with other values (`Study.with_values`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from polyshot import working_copy
from polyshot.errors import Problem, StudyError
from polyshot.study.agreement import disagreements
from polyshot.study.balance import Balance, FixedBalance
from polyshot.study.data import Data, Source
from polyshot.study.meta import EPISODES, Meta
from polyshot.study.model import Model
from polyshot.study.scale import Scale
from polyshot.study.search import COSTS, IMPROVEMENT, RANK, WORST_IMPROVEMENT, Search
from polyshot.study.section import NAME, OBJECT_PATH, Section
from polyshot.study.tasks import RegressionTask, Task, TokensTask, own_targets
from polyshot.study.tracking import Tracking
from polyshot.study.training import LOSS, Training
from polyshot.study.transfer import Transfer
from polyshot.study_file import Key, dotted, key_path, nearest_line, parse_yaml, section_fields, sentence

_SCHEME = r"[a-z][a-z0-9+.-]*"
_PLACE = r"[^/\s?#*\[\]]+(/[^/\s?#*\[\]]+)*/?"


class Study(Section):
    """Several related prediction tasks and everything that is done about them."""

    name: str = Field(pattern=NAME, max_length=100, description="Names the experiment and its folder.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initialisation, batches and sampling.")
    storage: str = Field(
        "polyshot-runs",
        min_length=1,
        description="Folder of runs, models and the local MLflow store (from here); or an object store, s3://BUCKET/RUNS.",
    )
    data: Data
    tasks: dict[Annotated[str, Field(pattern=NAME)], Task] = Field(min_length=1)
    model: Model = Field(default_factory=Model)
    balance: Balance = Field(default_factory=FixedBalance)
    training: Training = Field(default_factory=Training)
    scale: Scale = Field(default_factory=Scale)
    meta: Meta = Field(default_factory=Meta)
    transfer: Transfer = Field(default_factory=Transfer)
    search: Search = Field(default_factory=Search)
    tracking: Tracking = Field(default_factory=Tracking)

    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="before")
    @classmethod
    def _episodes_may_be_the_data(cls, values: Any) -> Any:
        """Episodes that are made of no table stand for `data` and `tasks`, which then may be left out."""
        episodes: Any = values
        for key in ("meta", "episodes", "kind"):
            episodes = episodes.get(key) if isinstance(episodes, Mapping) else None
        kind = {"sinusoids": "regression", "classes": "multiclass"}.get(episodes) if episodes else None
        return {"data": {"source": EPISODES}, "tasks": {EPISODES: {"kind": kind}}, **values} if kind else values

    @field_validator("storage")
    @classmethod
    def _storage_is_a_folder_or_an_address(cls, storage: str) -> str:
        scheme, mark, place = storage.partition("://")
        if not mark:
            return storage
        if "@" in place:
            raise ValueError(
                f"'{scheme}://…@…' holds a user or a password, which others could read; leave them out: credentials "
                "come from the environment, or from the store's own files"
            )
        if scheme in ("file", "local"):
            raise ValueError(f"'{scheme}://…' is on this machine; give the folder's path")
        if scheme in ("http", "https"):
            raise ValueError(f"'{scheme}://…' is a web address, which cannot be written; give s3://BUCKET/RUNS")
        if not re.fullmatch(_SCHEME, scheme) or not re.fullmatch(_PLACE, place) or ".." in place.split("/"):
            raise ValueError(f"'{storage}' is no address of a folder in an object store; give s3://BUCKET/RUNS")
        return storage

    @field_validator("tasks")
    @classmethod
    def _weights_are_a_simplex(cls, tasks: dict[str, Any]) -> dict[str, Any]:
        if tasks and sum(task.weight for task in tasks.values()) <= 0:
            raise ValueError("task weights sum to 0; give at least one task a weight above 0")
        return tasks

    # --- reading and writing -----------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file (YAML).

        Raises:
            StudyError: with every mistake in the file, each with its line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError([Problem(str(path), "no such file; give the path of a study file")]) from None
        except IsADirectoryError:
            raise StudyError([Problem(str(path), "is a folder; give the path of a study file in it")]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError([Problem(str(path), f"cannot be read as UTF-8 text ({error})")]) from None
        values, lines = parse_yaml(text, str(path))
        study = cls.from_dict(values, where=lambda key: f"{path}:{nearest_line(lines, key)}")
        study._folder = path.parent.resolve()
        return study

    @classmethod
    def from_dict(cls, values: object, *, where: Callable[[Key], str] | None = None) -> Study:
        """The study that `values` (nested dictionaries) describe.

        `where`, when given, maps a key path to the words that say where it stands in a file.

        Raises:
            StudyError: with every mistake.
        """

        def problem(key: Key, message: str) -> Problem:
            return Problem(" ".join(filter(None, [where(key) if where else "", dotted(key)])), message)

        if not isinstance(values, Mapping):
            raise StudyError([problem((), "a study is a mapping of keys to values, starting with 'name:'")])
        try:
            study = cls.model_validate(values)
        except ValidationError as error:
            mistakes = [(key_path(detail["loc"], values), detail) for detail in error.errors()]
            raise StudyError(
                problem(key, sentence(detail, key, section_fields(cls, key[:-1]))) for key, detail in mistakes
            ) from None
        problems = [problem(key, message) for key, message in disagreements(study)]
        if problems:
            raise StudyError(problems)
        return study

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The study with every default filled in, as a study file; without the credentials of addresses in it.

        Such a file is kept beside runs and models, and read by others: what it lacks comes from the environment then.
        """
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)
        return re.sub(r"(?<=://)[^/\s?#\"'<>]+@", "", text)

    # --- variations --------------------------------------------------------------------------------------------------

    def with_values(self, values: Mapping[str, Any]) -> Study:
        """This study with other values by dotted key, validated like any other.

        Setting a section's `kind` to another variant resets that section first, so that keys of the old variant do not
        linger.

        Raises:
            StudyError: for an unknown key or a value that does not fit.
        """
        tree = self.to_dict()
        for key in sorted(values, key=lambda key: (not key.endswith(".kind"), key.count("."))):
            *parents, leaf = key.split(".")
            section = tree
            for depth, parent in enumerate(parents):
                if section.get(parent) is None:
                    section[parent] = {}
                section = section[parent]
                if not isinstance(section, dict):
                    place = ".".join(parents[: depth + 1])
                    raise StudyError([Problem(key, f"'{place}' is a value, not a section; it has no '{leaf}'")])
            if leaf == "kind" and section.get("kind") != values[key]:
                section.clear()
            section[leaf] = values[key]
        return self.with_tree(tree)

    def with_tree(self, tree: Mapping[str, Any]) -> Study:
        """The study that `tree`, this one's `to_dict` with other values, describes, in the same folder.

        Raises:
            StudyError: when it is none.
        """
        study = Study.from_dict(tree)
        study._folder = self._folder
        return study

    def single_task(self, task: str) -> Study:
        """The single-task baseline of `task`: the same study with one task and nothing to share or to balance."""
        tree = self.to_dict()
        own = tree["tasks"][task]
        tree["training"] |= {
            "sampling": {"kind": "rows"},
            "batch_size": own["batch_size"] or self.training.batch_size,
            "monitor": self.monitor_among([task]),
        }
        tree["tasks"] = {
            task: own | {"weight": 1.0, "batch_size": None, "sampling_weight": 1.0, "learning_rate_factor": 1.0}
        }
        if own["source"] is not None:
            tree["data"] |= {"source": None, "arguments": {}}
        if own["source"] is None and (columns := self.stratified_by):
            tree["data"]["split"]["stratify"] = columns[0]
        tree["data"]["ignore"] += [
            column for name, targets in self.targets.items() if name != task for column in targets
        ]
        tree["model"]["sharing"] = {"kind": "hard"}
        tree["balance"] = {"kind": "fixed"}
        tree["search"] = Search().model_dump(mode="json")
        tree["meta"] = Meta().model_dump(mode="json")
        tree["transfer"] = Transfer().model_dump(mode="json")
        return self.with_tree(tree)

    def differences(self, other: Study) -> dict[str, Any]:
        """Dotted keys whose value in `other` is not this study's, with the value in `other`."""
        mine, theirs = dict(_flatten(self.to_dict())), dict(_flatten(other.to_dict()))
        return {key: value for key, value in theirs.items() if key not in mine or mine[key] != value}

    def flat(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return dict(_flatten(self.to_dict()))

    def digest(self, *sections: str) -> str:
        """Twelve hexadecimal digits that change when the named sections (by default all) change."""
        tree = self.to_dict()
        chosen = {name: tree[name] for name in sections or tree}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    # --- what the parts ask for --------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder that relative data paths start from: the study file's, or the current one."""
        return self._folder

    @property
    def targets(self) -> dict[str, list[str]]:
        """The target columns of each task: one, or those of a multilabel task's labels.

        In a table of its own they are called like the task (see `data.tables`).
        """
        return {name: own_targets(name, task, like_task=task.source is not None) for name, task in self.tasks.items()}

    @property
    def tables(self) -> list[tuple[Source, list[str]]]:
        """The tables that are read, and the tasks that have their labels in each."""
        tables: list[tuple[Source, list[str]]] = []
        for name, task in self.tasks.items():
            source: Source = self.data if task.source is None else task
            place = (source.source, source.arguments)
            same = next((tasks for other, tasks in tables if (other.source, other.arguments) == place), None)
            if same is None:
                tables.append((source, [name]))
            else:
                same.append(name)
        return tables

    @property
    def objects(self) -> dict[str, str]:
        """What the study names as `package.module:name`, which is imported and called, by dotted key."""
        return dict(_objects(self.to_dict()))

    @property
    def stratified_by(self) -> list[list[str]]:
        """The columns whose proportions the splits keep: of each table at most one, or those of one multilabel task."""
        stratify = self.data.split.stratify
        if self.data.group is not None or self.data.split.column is not None or stratify is False:
            return []
        if not isinstance(stratify, bool):
            return [[stratify] if isinstance(stratify, str) else stratify]
        classified = [
            [name for name in tasks if not isinstance(self.tasks[name], RegressionTask | TokensTask)]
            for _, tasks in self.tables
        ]
        return [self.targets[names[0]] for names in classified if names]

    @property
    def task_weights(self) -> dict[str, float]:
        """Task weights λ, normalised: Σ λ = 1."""
        total = sum(task.weight for task in self.tasks.values())
        return {name: task.weight / total for name, task in self.tasks.items()}

    @property
    def metrics(self) -> list[str]:
        """Every `task/metric` that the kinds of the tasks have."""
        return [f"{name}/{metric}" for name, task in self.tasks.items() for metric in task.metrics]

    @property
    def quantities(self) -> list[str]:
        """What a search can optimise or bound; a task alone stands for its metric."""
        improvements = [f"{name}/{IMPROVEMENT}" for name in self.tasks]
        return [IMPROVEMENT, WORST_IMPROVEMENT, *COSTS, *self.tasks, *self.metrics, *improvements]

    @property
    def objectives(self) -> list[str]:
        """What the search optimises, without short forms."""
        names = self.search.objectives
        return [self.quantity(name) for name in (self.tasks if names == [RANK] else names)]

    def quantity(self, name: str) -> str:
        """One of `quantities` without its short form: `task/metric` for a task alone."""
        is_task = name in self.tasks and name not in (IMPROVEMENT, WORST_IMPROVEMENT, *COSTS)
        return f"{name}/{self.tasks[name].metric}" if is_task else name

    def monitor_among(self, tasks: Container[str]) -> str:
        """`training.monitor` of a study with these of the tasks only: the loss where the metric is another one's."""
        return self.training.monitor if self.training.monitor.partition("/")[0] in tasks else LOSS

    def watched(self, task: str) -> list[str]:
        """The metrics of a task computed after every epoch: its own, what is monitored and what the search asks for."""
        own = self.tasks[task]
        named = [self.training.monitor, *self.search.objectives, *(bound.name for bound in self.search.bounds)]
        return [own.metric, *(name for name in own.metrics if name != own.metric and f"{task}/{name}" in named)]

    @property
    def storage_folder(self) -> Path:
        """Where this study's runs are kept on this node; of an object store, in its working copy."""
        return working_copy.folder_of(self.storage).expanduser().absolute() / self.name


def json_schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        dotted_key = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted_key not in _FREE_MAPPINGS:
            yield from _flatten(value, f"{dotted_key}.")
        else:
            yield dotted_key, value


def _objects(value: object, *key: str) -> Iterator[tuple[str, str]]:
    """Python objects are named by a `kind`, a `source` or one of `spaces`, also as a choice of the search for one."""
    if isinstance(value, str):
        place = [part for part in ".".join(key).split(".") if part != "choice" and not part.isdigit()]
        if place[-1] in ("kind", "source", "spaces") and re.match(OBJECT_PATH, value):
            yield ".".join(key), value
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _objects(child, *key, str(name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _objects(child, *key, str(index))


_FREE_MAPPINGS = {"search.space", "data.arguments", "data.columns", "data.text", "data.images", "model.encoder.options"}
