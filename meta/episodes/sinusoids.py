"""Sine waves of random amplitude and phase: the regression tasks of Finn et al. (2017), without an end to them."""

from __future__ import annotations

import math

import torch

from polyshot.meta.episodes.base import Episodes, Share, Split, everything
from polyshot.meta.objectives import SquaredError

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)


class Sinusoids:
    """y = A sin(x − φ) with A ~ U[0.1, 5], φ ~ U[0, π] and x ~ U[−5, 5], as in the code of MAML.

    Splits differ by the generators that they are drawn with: no wave is ever drawn twice.
    """

    name = "sinusoid"
    shape = (1,)
    outputs = 1
    objective = SquaredError()

    def __init__(self, support: int, query: int, test_query: int):
        """`test_query`: points that validation and test waves are judged by."""
        self._support = support
        self._query = {"train": query, "validation": test_query, "test": test_query}

    def sample(self, split: Split, tasks: int, generator: torch.Generator, share: Share = everything) -> Episodes:
        cut = [self._support, self._query[split]]
        shapes = {AMPLITUDES: 1, PHASES: 1, INPUTS: sum(cut)}
        amplitudes, phases, inputs = (
            share(torch.empty(tasks, rows, 1).uniform_(*span, generator=generator)) for span, rows in shapes.items()
        )
        labels = (amplitudes * torch.sin(inputs - phases)).squeeze(2)
        (support, query), (support_labels, query_labels) = inputs.split(cut, 1), labels.split(cut, 1)
        return Episodes(support, support_labels, query, query_labels)
