"""Mixed training: every batch has rows of the source and of the target; a task that both have is one task."""

from __future__ import annotations

from polyshot.study.transfer import MixedTraining
from polyshot.transfer.mixing import mixed
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start


def prepare(settings: MixedTraining, problem: Problem) -> Start:
    return mixed(problem, settings)
