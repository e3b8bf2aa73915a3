"""Linear probe: the source's encoder extracts features and stays as it is; the linear heads are all that is trained."""

from __future__ import annotations

from polyshot.study.transfer import LinearProbe
from polyshot.transfer.model import NONE
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, on_source


def prepare(settings: LinearProbe, problem: Problem) -> Start:
    return on_source(problem, settings, training=NONE)
