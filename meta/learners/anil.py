"""ANIL (Raghu et al., "Rapid learning or feature reuse?", ICLR 2020): adapts the head, meta-learns the body."""

from __future__ import annotations

from typing import Any

from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective


class ANIL(GradientLearner):
    """Features of the support rows are computed once; the inner steps are those of a linear model."""

    def __init__(
        self, network: FewShotNetwork, objective: Objective, *, rate: float, steps: int, zero_head: bool = False
    ):
        super().__init__(network, objective, rate=rate, steps=steps, adapts="head", zero_head=zero_head)

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import maml

        return maml(self)
