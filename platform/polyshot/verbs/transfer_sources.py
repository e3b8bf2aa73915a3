"""`polyshot rank-sources`: which of several trained models promises most for a study's tasks, told without training."""

from __future__ import annotations

from collections.abc import Sequence
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
        runs: each as `transfer.source`; a study file without a run is trained first.
        table: the study's rows, in place of `data.source`.

    Raises:
        RunError: when there is no such run.
        DataError: when the rows cannot be read, or share no column with a source.
    """
    from polyshot.transfer.problem import TargetData
    from polyshot.transfer.transferability.ranking import ranking

    sources = [find_source(run, study, progress) for run in dict.fromkeys(runs)]
    return ranking(TargetData.of(study, table), sources)
