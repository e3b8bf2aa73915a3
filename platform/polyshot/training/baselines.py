"""Single-task baselines: what each task reaches alone, with the same data, model and budget.

They are the yardstick of every multi-task run of a study, so they are trained once per study and seed and kept on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from polyshot.data.prepare import Prepared
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_json
from polyshot.study import Study
from polyshot.training.loop import Epoch, TrainingRun

# What a baseline depends on; the other sections only say how a study is searched, tracked or spread out.
SECTIONS = ("seed", "data", "tasks", "model", "balance", "training")


@dataclass(frozen=True)
class Baseline:
    """One task alone: all its metrics as `task/metric`, on validation and on test, and its learning curve."""

    task: str
    validation: dict[str, float]
    test: dict[str, float]
    history: list[Epoch]


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


def train_baselines(study: Study, prepared: Prepared, cache: Path, progress: Progress = SILENT) -> dict[str, Baseline]:
    """The single-task baseline of every task, from `cache` where the same one was trained before."""
    return {task: _baseline(study.single_task(task), task, prepared, cache, progress) for task in study.tasks}


def _baseline(study: Study, task: str, prepared: Prepared, cache: Path, progress: Progress) -> Baseline:
    path = cache / f"{task}-{study.digest(*SECTIONS)}.json"
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        return Baseline(**saved | {"history": [Epoch(**epoch) for epoch in saved["history"]]})
    alone = prepared.for_task(task)
    run = TrainingRun(study, alone)
    activity = f"baseline {task}"
    progress.start(activity, study.training.epochs)
    for epoch in run.epochs():
        progress.advance(activity, epoch.number)
    baseline = Baseline(task, run.evaluate(alone.validation), run.evaluate(alone.test), run.history)
    metric = f"{task}/{study.tasks[task].metric}"
    progress.finish(activity, f"{metric} {baseline.validation[metric]:.4g}")
    write_json(path, asdict(baseline))
    return baseline
