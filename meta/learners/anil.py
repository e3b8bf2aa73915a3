"""ANIL (Raghu et al., "Rapid learning or feature reuse?", ICLR 2020): adapts the head, meta-learns the body."""

from __future__ import annotations

from typing import Any

from polyshot.meta.learners.gradient import GradientLearner


class ANIL(GradientLearner):
    """Features of the support rows are computed once; the inner steps are those of a linear model."""

    head_only = True

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import maml

        return maml(self)
