"""Single-task baselines: what each task reaches alone, with the same data, model and budget.

They are the yardstick of every multi-task run of a study, so they are trained once per study, data and seed and kept on
disk: metrics and learning curve as JSON, the outputs beside them as NumPy's arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyshot import working_copy
from polyshot.data.prepare import Prepared
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_atomically, write_json
from polyshot.study import Study
from polyshot.training.changing import train_changing
from polyshot.training.loop import Epoch, TrainingRun
from polyshot.training.packed import train_packed

# What a baseline depends on; the other sections only say how a study is searched, tracked or spread out.
SECTIONS = ("seed", "data", "tasks", "model", "balance", "training")


@dataclass(frozen=True)
class Baseline:
    """One task alone.

    Attributes:
        validation, test: all its metrics on the split, as `task/metric`.
        history: its learning curve.
        outputs: by split, the model's outputs [n, O] for the rows that have the label.
    """

    task: str
    validation: dict[str, float]
    test: dict[str, float]
    history: list[Epoch]
    outputs: dict[str, NDArray[np.float32]]


def chosen_metrics(study: Study, metrics: Mapping[str, float]) -> dict[str, float]:
    """Of all `metrics`, the one that the study chose for each task."""
    return {
        name: metrics[name]
        for task, settings in study.tasks.items()
        if (name := f"{task}/{settings.metric}") in metrics
    }


def merged(baselines: Mapping[str, Baseline]) -> dict[str, dict[str, float]]:
    """All tasks' metrics together, by split."""
    return {
        split: {name: value for baseline in baselines.values() for name, value in getattr(baseline, split).items()}
        for split in ("validation", "test")
    }


def train_baselines(
    study: Study,
    prepared: Prepared,
    cache: Path,
    progress: Progress = SILENT,
    changes: Mapping[int, Study] | None = None,
) -> dict[str, Baseline]:
    """The single-task baseline of every task, from `cache` where the same one was trained before.

    Args:
        changes: by epoch from 1, the study from then on, where its settings change on the way; the last is `study`.
    """
    if changes:
        return {
            task: _baselines([study], task, prepared.for_task(task), cache, progress, changes)[0]
            for task in study.tasks
        }
    return train_baselines_of([study], prepared, cache, progress)[0]


def train_baselines_of(
    studies: Sequence[Study], prepared: Prepared, cache: Path, progress: Progress = SILENT
) -> list[dict[str, Baseline]]:
    """The same of several studies of these tasks and data, such as of several seeds; each task's are packed."""
    by_task = {task: _baselines(studies, task, prepared.for_task(task), cache, progress) for task in studies[0].tasks}
    return [{task: found[place] for task, found in by_task.items()} for place in range(len(studies))]


def _baselines(
    studies: Sequence[Study],
    task: str,
    alone: Prepared,
    cache: Path,
    progress: Progress,
    changes: Mapping[int, Study] | None = None,
) -> list[Baseline]:
    single, digest = [study.single_task(task) for study in studies], data_digest(alone)
    later = {epoch: study.single_task(task) for epoch, study in (changes or {}).items()}
    if later:
        parts = ",".join(f"{epoch}:{study.digest(*SECTIONS)}" for epoch, study in later.items())
        digest += f"-{hashlib.sha256(parts.encode()).hexdigest()[:8]}"
    paths = [cache / f"{task}-{study.digest(*SECTIONS)}-{digest}.json" for study in single]
    runs = {path: TrainingRun(study, alone) for path, study in zip(paths, single, strict=True) if not _is_kept(path)}
    trained: dict[Path, Baseline] = {}
    if runs:
        activity = f"baseline {task}" + (f", {len(runs)} seeds" if len(runs) > 1 else "")
        progress.start(activity, max(study.training.epochs for study in single))
        if later:
            runs = {path: train_changing(later, lambda study: TrainingRun(study, alone)) for path in runs}
        else:
            train_packed(
                list(runs.values()),
                lambda: progress.advance(activity, max(len(run.history) for run in runs.values())),
            )
        for path, run in runs.items():
            trained[path] = _judged(run, task, alone)
            _write(path, trained[path])
        metric = f"{task}/{single[0].tasks[task].metric}"
        values = [baseline.validation[metric] for baseline in trained.values()]
        progress.finish(activity, f"{metric} {sum(values) / len(values):.4g}")
    return [trained.get(path) or _read(path) for path in paths]


def _judged(run: TrainingRun, task: str, alone: Prepared) -> Baseline:
    outputs = {"validation": run.best_outputs(alone.validation), "test": run.best_outputs(alone.test)}
    return Baseline(task, run.evaluate(alone.validation), run.evaluate(alone.test), run.history, outputs)


def data_digest(prepared: Prepared) -> str:
    """Eight hexadecimal digits that change with the rows: those of a file may change, and a table may replace them."""
    digest = hashlib.sha256()
    for examples in (prepared.train, prepared.validation, prepared.test):
        for tensor in (examples.features, examples.targets, examples.mask):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:8]


def _write(path: Path, baseline: Baseline) -> None:
    """The outputs first: where there is the JSON, there is all of it."""
    outputs = baseline.outputs
    write_atomically(
        path.with_suffix(".npz"), lambda file: np.savez(file, validation=outputs["validation"], test=outputs["test"])
    )
    saved = asdict(baseline)
    del saved["outputs"]
    write_json(path, saved)
    for file in (path.with_suffix(".npz"), path):
        working_copy.push(file)


def _is_kept(path: Path) -> bool:
    return working_copy.has(path.with_suffix(".npz")) and working_copy.has(path)


def _read(path: Path) -> Baseline:
    saved = json.loads(path.read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as outputs:
        return Baseline(
            **saved | {"history": [Epoch(**epoch) for epoch in saved["history"]]}, outputs=dict(outputs.items())
        )
