"""First-order MAML (Finn, Abbeel & Levine, ICML 2017, section 5.2): MAML without the derivatives of inner gradients."""

from __future__ import annotations

from typing import Any

from polyshot.meta.learners.gradient import GradientLearner


class FirstOrderMAML(GradientLearner):
    """The meta-gradient is the query loss's gradient at the adapted weights."""

    first_order = True

    def reference(self) -> Any:
        from polyshot.meta.engines.learn2learn import maml

        return maml(self)
