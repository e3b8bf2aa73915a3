"""Fine-tuning from a meta-learnt start: a learner of `polyshot meta` first adapts to the labelled rows itself."""

from __future__ import annotations

from polyshot.study.transfer import MetaLearned
from polyshot.transfer.problem import Problem
from polyshot.transfer.source import Source
from polyshot.transfer.start import Start, on_source


def prepare(settings: MetaLearned, problem: Problem) -> Start:
    learner = problem.sources.learners[settings.run]
    adapted = learner.adapt_table(problem.labelled_table, steps=settings.steps)
    return on_source(problem, settings, source=Source(settings.run, adapted, adapted.study))
