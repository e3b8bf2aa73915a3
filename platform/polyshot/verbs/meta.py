"""`polyshot meta`: a learner that adapts to a new task from a few rows, judged beside what it has to beat.

The run folder holds all that a killed run needs to go on, and the learner that `polyshot adapt` takes up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot.errors import RunError
from polyshot.outcomes import curve
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import read_table, write_table
from polyshot.shown import Shown
from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker
from polyshot.verbs.recording import recorded

# Heavy modules are imported inside the functions: the tracker's writer process starts first and loads MLflow meanwhile.
if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from polyshot.meta.episodes import EpisodeSource
    from polyshot.meta.evaluation import Scores
    from polyshot.meta.saved import SavedLearner
    from polyshot.meta.stacked import Weights
    from polyshot.meta.training import MetaRun
    from polyshot.training.loop import Epoch
    from polyshot.training.world import World

ACTIVITY = "meta-training"
META_LEARNED = "meta-learnt"
# What must be the same for a run to go on.
SECTIONS = ("name", "seed", "data", "tasks", "model", "meta")
_TABLES = ("adaptation.json", "verdicts.json", "curves.json")


@dataclass(frozen=True, repr=False)
class MetaResult(Shown):
    """What meta-learning gave.

    Attributes:
        table: the protocol's result on test tasks, one row per method and step: method (`meta-learnt` first, then the
            baselines), step, metric, mean, interval (half of the 95 % one), median, diverged (a fraction of the tasks).
        verdicts: one row per baseline: method, difference (of the means, positive where the meta-learnt one is better)
            and interval (half of the paired 95 % one), both methods after the steps that meta-training took.
        curves: one row per look at the validation tasks while meta-training.
        folder: the run's folder.
        mlflow_id: the MLflow run's id, or None while the tracking server is away.
    """

    table: pd.DataFrame
    verdicts: pd.DataFrame
    curves: pd.DataFrame
    folder: Path
    mlflow_id: str | None

    def _words(self) -> Iterator[str]:
        for row in self.verdicts.to_dict(orient="records"):
            low, high = row["difference"] - row["interval"], row["difference"] + row["interval"]
            found = "better than" if low > 0 else "worse than" if high < 0 else "within noise of"
            yield f"Meta-learnt is {found} {row['method']} (difference {low:+.4g} to {high:+.4g}, positive: better)."
        yield f"The learner and all else is in {self.folder}."

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield "Test tasks, mean ± 95 %", self.table

    @property
    def learner(self) -> SavedLearner:
        from polyshot.meta.saved import SavedLearner

        return SavedLearner.load(self.folder / "learner")


def meta_learn(
    study: Study,
    *,
    table: pd.DataFrame | None = None,
    baselines: bool = True,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> MetaResult:
    """Meta-train the study's learner, and judge it on test tasks beside baselines.

    An interrupted run of the same study goes on from its last checkpoint.

    Args:
        table: the rows to learn from, in place of `data.source`.
        baselines: also judge what the learner has to beat, in the same episodes.
        fresh: start anew even where an interrupted run could go on.

    Raises:
        PolyshotError: for tasks that cannot be learnt from, a tracking store that cannot be used, too few CPUs, a
            training that diverges.
    """
    with Tracker.open(study) as tracker, ExitStack() as resources:
        from polyshot.meta.episodes import build_source
        from polyshot.training.processor import use_processor

        use_processor(study)
        source = build_source(study, table)
        for note in getattr(source, "notes", []):
            progress.note(note)
        # Built before anything is written: what cannot be trained leaves no run behind.
        run = begin(study, source, note=progress.note)
        if is_distributed(study):
            from polyshot.cluster.ray import ray_session
            from polyshot.training.distributed import check_resources

            resources.enter_context(ray_session(study))
            check_resources(study)
        with recorded(tracker, study, "meta", study.digest(*SECTIONS), fresh=fresh) as recording:
            progress = recording.kept(progress)
            folder, parent = recording.folder, recording.run
            _fit(run, folder.path, parent, progress)
            conclude(run, baselines, folder.path, parent, progress)
    mlflow_id = recording.settle(progress)
    recording.finish(progress)
    return read_result(folder.path, mlflow_id)


def begin(
    study: Study,
    source: EpisodeSource,
    device: torch.device | None = None,
    world: World | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> MetaRun:
    """A run that has not begun, with the weights that `meta.start` names.

    Raises:
        PolyshotError: for a network, a learner or weights to start from that do not fit the tasks.
    """
    from polyshot.meta.training import MetaRun

    return MetaRun(study, source, device=device, world=world, note=note, start=_start(study, source))


def is_distributed(study: Study) -> bool:
    return study.scale.workers > 1 or study.scale.engine == "ray"


def train_distributed(
    study: Study, source: EpisodeSource, folder: Path, on_epoch: Callable[[Epoch], None]
) -> dict[str, Any]:
    """Meta-train with `scale.workers` workers, each on its share of every batch of tasks.

    Args, result and errors are those of `training.distributed.distribute`.
    """
    from polyshot.meta.training import MetaRun
    from polyshot.training.distributed import Work, distribute

    return distribute(study, Work(begin, MetaRun.iterations, source), folder, on_epoch=on_epoch)


def _start(study: Study, source: EpisodeSource) -> Weights | None:
    """The weights of the encoder that `meta.start` names, as those of the learner's body.

    Raises:
        RunError: when there is no such run, or its encoder is not one that this study's learner can start from.
    """
    if study.meta.start is None:
        return None
    import numpy as np

    from polyshot.meta.episodes import Groups
    from polyshot.meta.networks import build_network
    from polyshot.models.sharing.hard import HardSharing
    from polyshot.saved_model import SavedModel
    from polyshot.verbs.predict import find_model

    place = f"meta.start: '{study.meta.start}'"
    saved = SavedModel.load(find_model(study.meta.start, study.storage_folder.parent))
    if not isinstance(source, Groups) or not isinstance(saved.model.sharing, HardSharing):
        raise RunError(f"{place} needs hard sharing, and episodes of kind 'groups' from the same table; choose these")
    theirs, ours = (features.transform(source.example) for features in (saved.features, source.features))
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, atol=1e-5):
        raise RunError(
            f"{place} reads the table's columns in another way; use the same `data` and split in both studies"
        )
    start = {f"body.{name}": value for name, value in saved.model.sharing.encoder.state_dict().items()}
    own = build_network(study, source.shape, source.outputs).state_dict()
    if any(name not in own or own[name].shape != value.shape for name, value in start.items()):
        raise RunError(f"{place} has another encoder; use the same `model.encoder` in both studies")
    return start


def conclude(run: MetaRun, with_baselines: bool, folder: Path, parent: Run, progress: Progress) -> None:
    """Save the learner of a run that is at its end, judge it, and log all of it; `read_result` reads what was found."""
    import pandas as pd

    from polyshot.meta.plots import adaptation_curves
    from polyshot.meta.saved import SavedLearner
    from polyshot.report.plots import learning_curves

    source = run.source
    saved = SavedLearner.of(run.study, source, run.best_weights())
    saved.save(folder / "learner")
    if run.study.tracking.models:
        parent.log_artifact(folder / "learner")

    methods = dict(_judged(run, source, with_baselines, progress))
    tables = [scores.table(source.objective.metric) for scores in methods.values()]
    table = pd.concat(
        [one.assign(method=method) for method, one in zip(methods, tables, strict=True)], ignore_index=True
    )
    table = table[["method", *(name for name in table if name != "method")]]
    verdicts = pd.DataFrame(_verdicts(run, methods))
    _log_results(run, source, table, verdicts, parent)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    figures = [learning_curves(run.history, plots / "learning_curves.png")]
    figures.append(adaptation_curves(table, plots / "adaptation.png"))
    for figure in figures:
        parent.log_artifact(figure, "plots")
    curves = pd.DataFrame([{"epoch": epoch.number, **epoch.metrics} for epoch in run.history])
    for name, rows in zip(_TABLES, (table, verdicts, curves), strict=True):
        write_table(folder / name, rows)
        parent.log_artifact(folder / name)


def read_result(folder: Path, mlflow_id: str | None) -> MetaResult:
    """What `conclude` left in a run's folder."""
    table, verdicts, curves = (read_table(folder / name) for name in _TABLES)
    return MetaResult(table, verdicts, curves, folder, mlflow_id)


def _fit(run: MetaRun, folder: Path, parent: Run, progress: Progress) -> None:
    """Meta-train, here or under Ray Train, from the last checkpoint where there is one."""
    settings = run.study.meta
    progress.start(ACTIVITY, settings.iterations)

    def on_epoch(epoch: Epoch) -> None:
        iteration = min(epoch.number * settings.validate_every, settings.iterations)
        parent.log_metrics(curve(epoch), step=iteration)
        progress.advance(ACTIVITY, iteration, _standing(epoch))

    if is_distributed(run.study):
        run.load_state_dict(train_distributed(run.study, run.source, folder, on_epoch))
    else:
        _fit_here(run, folder / "checkpoint.pt", on_epoch)
    progress.finish(ACTIVITY, f"best after look {run.best.number}" if run.best else "")


def _standing(epoch: Epoch) -> str:
    from polyshot.meta.training import NOT_FINITE

    words = f"validation loss {epoch.metrics['val/loss']:.4g}"
    diverged = epoch.metrics[NOT_FINITE]
    return f"{words}, without the {diverged:.1%} of the tasks that diverged" if diverged else words


def _fit_here(run: MetaRun, checkpoint: Path, on_epoch: Callable[[Epoch], None]) -> None:
    from polyshot.training.checkpoint import load_checkpoint, save_checkpoint

    state = load_checkpoint(checkpoint, run.device)
    if state is not None:
        run.load_state_dict(state)
    saved = time.monotonic()
    for epoch in run.iterations():
        if epoch is not None:
            on_epoch(epoch)
        if time.monotonic() - saved >= run.study.training.checkpoint_seconds:
            save_checkpoint(run.state_dict(), checkpoint)
            saved = time.monotonic()
    save_checkpoint(run.state_dict(), checkpoint)


def _judged(
    run: MetaRun, source: EpisodeSource, with_baselines: bool, progress: Progress
) -> Iterator[tuple[str, Scores]]:
    """The learner, then the baselines, each judged on the study's test tasks."""
    from polyshot.meta.baselines import baselines
    from polyshot.meta.evaluation import episode_batches, score

    settings = run.study.meta
    yield META_LEARNED, run.evaluate("test", settings.test_tasks, settings.test_steps)
    if not with_baselines:
        return
    for baseline in baselines(run.study, source, run, settings.test_steps):
        progress.start(baseline.name)
        episodes = episode_batches(run.study, source, "test", settings.test_tasks)
        yield baseline.name, score(baseline.learner, baseline.weights, episodes, baseline.steps)
        progress.finish(baseline.name)


def _verdicts(run: MetaRun, methods: dict[str, Scores]) -> Iterator[dict[str, Any]]:
    sign = 1 if run.source.objective.higher_is_better else -1
    own = _at(methods[META_LEARNED], run.steps)
    for method, scores in methods.items():
        if method != META_LEARNED:
            difference = sign * (own - _at(scores, run.steps))
            difference = difference[difference.isfinite()]
            interval = 1.96 * difference.std().item() / math.sqrt(max(len(difference), 1))
            yield {"method": method, "difference": difference.mean().item(), "interval": interval}


def _at(scores: Scores, step: int) -> Tensor:
    """The tasks' metrics after `step` steps, or the last where there are fewer."""
    return scores.metrics[min(step, len(scores.metrics) - 1)]


def _log_results(run: MetaRun, source: EpisodeSource, table: pd.DataFrame, verdicts: pd.DataFrame, parent: Run) -> None:
    """The final metrics, and the adaptation curves by step."""
    metric = source.objective.metric
    for row in table.to_dict(orient="records"):
        method = row["method"].replace(" ", "-")
        parent.log_metrics({f"adaptation/{method}/{metric}": row["mean"]}, step=row["step"])
    own = table[table["method"] == META_LEARNED]
    final = own.iloc[min(run.steps, len(own) - 1)]
    assert run.best is not None
    name = f"{source.name}/{metric}"
    parent.log_metrics(
        {
            f"val/{name}": run.best.metrics[f"val/{name}"],
            f"test/{name}": final["mean"],
            f"test/{name}_interval": final["interval"],
            "test/diverged": final["diverged"],
        }
    )
    parent.set_tags(
        {
            f"verdict.{row['method']}": f"{row['difference']:+.4g} ± {row['interval']:.2g}"
            for row in verdicts.to_dict(orient="records")
        }
    )
