"""`polyshot rank-sources`: which of several trained models promises most for a study's tasks, told without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polyshot.progress import SILENT, Progress
from polyshot.study import Study
from polyshot.verbs.transfer import find_source

if TYPE_CHECKING:
    import pandas as pd


def rank_sources(
    study: Study, runs: Sequence[str], *, table: pd.DataFrame | None = None, progress: Progress = SILENT
) -> pd.DataFrame:
    """Sources by transferability to the study's labelled training rows (see `transferability.ranking.ranking`).

    Args:
        runs: each as `transfer.source`; a study file without a run is trained first. `transfer.source_task` is of
            those that have it.
        table: the study's rows, in place of `data.source`.

    Raises:
        RunError: when there is no such run, or none of them has the task `transfer.source_task`.
        DataError: when the rows cannot be read, or share no column with a source.
    """
    from polyshot.transfer.problem import TargetData
    from polyshot.transfer.transferability.ranking import ranking

    sources = [find_source(run, study, progress) for run in dict.fromkeys(runs)]
    named = study.transfer.source_task
    if named is not None:
        having = [named in source.saved.study.tasks for source in sources]
        pairs = zip(sources, having, strict=True)  # where none has it, all say so
        sources = [replace(source, task=named) if has or not any(having) else source for source, has in pairs]
    target = TargetData.of(study, table)
    for source in sources:
        for note in source.sharing_notes:
            progress.note(note)
    return ranking(target, sources)
