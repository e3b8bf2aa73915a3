"""`polyshot affinity`: which tasks help each other, and which of them to learn together within a budget of networks.

What was measured is kept, so that the same command with another number of networks answers at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from polyshot import working_copy
from polyshot.errors import Problem, StudyError, did_you_mean
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_json
from polyshot.shown import Shown
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker
from polyshot.verbs.recording import recorded

# Heavy modules are imported inside the functions: the tracker's writer process starts first and loads MLflow meanwhile.
if TYPE_CHECKING:
    import pandas as pd

    from polyshot.data.prepare import Prepared

Method = Literal["gradients", "lookahead", "pairwise"]


@dataclass(frozen=True, repr=False)
class AffinityResult(Shown):
    """What tasks are to each other, and the groups proposed.

    Attributes:
        method: how it was measured.
        matrix: row a, column b is what learning task a does for task b: the mean cosine of their gradients
            (`gradients`), the relative fall of b's loss after a step on a (`lookahead`), or the improvement of b over
            learning alone, as a fraction, when both are learnt together (`pairwise`).
        conflicts: of each pair of tasks, the share of batches in which their gradients point against each other; for
            `gradients` only.
        groups: one row per network: tasks, serves (the tasks that it is to predict; the others are there to help) and
            predicted (the mean affinity that each task in `serves` is given, in their order).
        studies: a study file per network.
        folder: the run's folder.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    method: Method
    matrix: pd.DataFrame
    conflicts: pd.DataFrame | None
    groups: pd.DataFrame
    studies: list[Path]
    folder: Path
    mlflow_id: str | None

    def _words(self) -> Iterator[str]:
        for tasks, serves in zip(self.groups["tasks"], self.groups["serves"], strict=True):
            yield f"A network of {', '.join(tasks)} serves {', '.join(serves)}."
        yield f"Studies of these networks and all else is in {self.folder}."

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield "What learning a task (row) does for others (column)", self.matrix.reset_index(names="")

    @property
    def is_partition(self) -> bool:
        """Whether no task is trained in two networks, so that one study with grouped sharing can have them all."""
        return sum(map(len, self.groups["tasks"])) == len(self.matrix)


def affinity(
    study: Study,
    method: Method = "gradients",
    networks: int = 2,
    *,
    table: pd.DataFrame | None = None,
    progress: Progress = SILENT,
) -> AffinityResult:
    """Measure what tasks are to each other, and propose groups of tasks for `networks` networks.

    Args:
        method: `gradients` and `lookahead` train the tasks together once; `pairwise` trains each task alone and every
            pair of them.
        networks: at most so many; a task may be trained in several, and each network has at least one to predict.
        table: the rows to learn from, in place of `data.source`.

    Raises:
        PolyshotError: for a study of one task, a number of networks that is not 1 to the number of tasks, data that
            cannot be learnt from, a tracking store that cannot be used, a training that diverges.
    """
    _check(study, method, networks)
    with Tracker.open(study) as tracker:
        from polyshot.data.prepare import prepare
        from polyshot.training.baselines import SECTIONS
        from polyshot.training.loop import TrainingRun
        from polyshot.training.processor import use_processor

        prepared = prepare(study, table)
        for note in (*prepared.notes, tracker.store.words):
            progress.note(note)
        use_processor(study, prepared)
        TrainingRun(study, prepared)  # what cannot be built is refused before anything is written
        digest = f"{study.digest(*SECTIONS)}-{method}-{networks}"
        params = {"affinity.method": method, "affinity.networks": networks}
        with recorded(tracker, study, "affinity", digest, params=params) as recording:
            progress = recording.kept(progress)
            folder = recording.folder
            result = _affinity(study, prepared, method, networks, folder.path, recording.run, progress)
    mlflow_id = recording.settle(progress)
    recording.finish(progress)
    return AffinityResult(method, **result, folder=folder.path, mlflow_id=mlflow_id)


def _check(study: Study, method: str, networks: int) -> None:
    tasks = len(study.tasks)
    if method not in get_args(Method):
        known = get_args(Method)
        message = f"must be one of {', '.join(known)}, got '{method}'.{did_you_mean(method, known)}"
        raise StudyError([Problem("--method", message)])
    if tasks < 2:
        raise StudyError([Problem("tasks", "affinity is between tasks and this study has one; give it two or more")])
    if not 1 <= networks <= tasks:
        message = f"must be from 1 to {tasks}, the number of tasks, got {networks}"
        raise StudyError([Problem("--networks", message)])


def _affinity(
    study: Study,
    prepared: Prepared,
    method: Method,
    networks: int,
    folder: Path,
    parent: Run,
    progress: Progress,
) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    from polyshot.affinities.grouping import best_groups
    from polyshot.report.plots import affinity_heat_map

    names = list(study.tasks)
    measured = {name: np.array(values, dtype=float) for name, values in _measured(study, prepared, method, progress)}
    tables = {name: pd.DataFrame(values, names, names) for name, values in measured.items()}
    groups = best_groups(measured["affinity"], networks)

    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
    figure = affinity_heat_map(tables["affinity"], _WORDS[method], folder / "plots")
    proposed = pd.DataFrame(
        {
            "tasks": [[names[task] for task in group.tasks] for group in groups],
            "serves": [[names[task] for task in group.serves] for group in groups],
            "predicted": [list(group.predicted) for group in groups],
        },
        index=pd.RangeIndex(1, len(groups) + 1, name="network"),
    )
    write_json(folder / "groups.json", proposed.to_dict(orient="records"))
    write_json(folder / "affinity.json", {"method": method, "networks": networks})
    studies = _write_studies(study, proposed["tasks"].tolist(), folder / "groups")

    for artifact in (*(f"{name}.csv" for name in tables), "groups.json", "groups"):
        parent.log_artifact(folder / artifact)
    parent.log_artifact(figure, "plots")
    metrics = {
        f"{name}/{a}/{b}": values[row, column]
        for name, values in measured.items()
        for row, a in enumerate(names)
        for column, b in enumerate(names)
        if a != b
    }
    parent.log_metrics(metrics | {"affinity/predicted": float(np.mean([p for g in groups for p in g.predicted]))})
    return {
        "matrix": tables["affinity"],
        "conflicts": tables.get("conflict"),
        "groups": proposed,
        "studies": studies,
    }


_WORDS = {
    "gradients": "mean cosine of gradients",
    "lookahead": "relative fall of the loss, one step ahead",
    "pairwise": "improvement over learning alone",
}


def _measured(study: Study, prepared: Prepared, method: Method, progress: Progress) -> Any:
    """Pairs of a table's name (affinity, conflict) and its values, from the disk where they were measured before."""
    from polyshot.affinities.gradients import gradient_affinity
    from polyshot.affinities.lookahead import lookahead_affinity
    from polyshot.affinities.pairwise import pairwise_affinity
    from polyshot.training.baselines import SECTIONS, data_digest, train_baselines

    kept = study.storage_folder / "affinities"
    path = kept / f"{method}-{study.digest(*SECTIONS)}-{data_digest(prepared)}.json"
    if not working_copy.has(path):
        if method == "gradients":
            found = gradient_affinity(study, prepared, progress)
            tables = {"affinity": found.cosine, "conflict": found.conflict}
        elif method == "lookahead":
            tables = {"affinity": lookahead_affinity(study, prepared, progress)}
        else:
            alone = train_baselines(study, prepared, study.storage_folder / "baselines", progress)
            tables = {"affinity": pairwise_affinity(study, prepared, alone, kept, progress)}
        # JSON has no NaN: what is not known is null.
        write_json(
            path,
            {
                name: [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
                for name, values in tables.items()
            },
        )
        working_copy.push(path)
    return json.loads(path.read_text(encoding="utf-8")).items()


def _write_studies(study: Study, groups: list[list[str]], folder: Path) -> list[Path]:
    """One study file per group, each named by its number and its tasks."""
    from polyshot.affinities.subsets import elsewhere, of_tasks

    folder.mkdir(exist_ok=True)
    paths = []
    for number, tasks in enumerate(groups, start=1):
        words = "-".join(tasks)
        path = folder / f"{number}-{words[:80]}.yaml"
        path.write_text(elsewhere(of_tasks(study, tasks), f"{study.name}-{words}").to_yaml(), encoding="utf-8")
        paths.append(path)
    return paths
