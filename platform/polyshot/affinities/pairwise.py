"""Affinity as it turns out: every pair of tasks is trained, and each task compared with learning alone.

Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?" (ICML 2020), section 4: what a task
reaches in a network of three tasks or more is predicted by the average of what it reaches in the networks of two with
each of them (their higher-order approximation, HOA). That takes T (T − 1) / 2 networks of two, besides one of each task
alone, in place of all 2^T − 1. Everything here is measured on validation: choosing groups is part of the training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from polyshot import working_copy
from polyshot.affinities.probing import Matrix
from polyshot.affinities.subsets import of_tasks
from polyshot.data.prepare import Prepared
from polyshot.progress import SILENT, Progress
from polyshot.run_folder import write_json
from polyshot.study import Study
from polyshot.training.baselines import SECTIONS, Baseline, chosen_metrics, data_digest
from polyshot.training.improvement import improvements
from polyshot.training.loop import TrainingRun


def pairwise_affinity(
    study: Study, prepared: Prepared, alone: Mapping[str, Baseline], cache: Path, progress: Progress = SILENT
) -> Matrix:
    """Train every pair with the study's own sharing.

    Args:
        alone: the single-task baseline of every task.
        cache: where pairs are kept, so that none is trained twice.

    Returns:
        [T, T], row a, column b is the improvement of b over learning alone, when it is learnt with a; 0 for itself.
    """
    tasks = list(study.tasks)
    affinity = np.zeros((len(tasks), len(tasks)))
    pairs = list(combinations(range(len(tasks)), 2))
    activity = "pairs of tasks"
    progress.start(activity, len(pairs))
    for number, (a, b) in enumerate(pairs, start=1):
        names = [tasks[a], tasks[b]]
        found = _validation(of_tasks(study, names), prepared.for_tasks(names), cache)
        baselines: dict[str, float] = {}
        for name in names:
            baselines |= chosen_metrics(study, alone[name].validation)
        gain_of_a, gain_of_b = improvements(found, baselines).values()
        affinity[b, a], affinity[a, b] = gain_of_a, gain_of_b
        progress.advance(activity, number, " and ".join(names))
    progress.finish(activity)
    return affinity


def _validation(study: Study, prepared: Prepared, cache: Path) -> dict[str, float]:
    """The metrics on validation of one network, as `task/metric`."""
    path = cache / f"{'-'.join(study.tasks)}-{study.digest(*SECTIONS)}-{data_digest(prepared)}.json"
    if working_copy.has(path):
        return json.loads(path.read_text(encoding="utf-8"))
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    found = run.evaluate(prepared.validation)
    write_json(path, found)
    working_copy.push(path)
    return found
