"""Deep CORAL: mixed training with features whose covariances agree between source and target.

Sun & Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation" (ECCV 2016 workshops), equation 1:
‖C_S − C_T‖²_F / (4 d²).
"""

from __future__ import annotations

from torch import Tensor

from polyshot.study.transfer import DeepCORAL
from polyshot.transfer.mixing import Alignment, mixed
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start


class CovarianceAlignment(Alignment):
    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        difference = source.T.cov() - target.T.cov()
        return (difference**2).sum() / (4 * source.shape[1] ** 2)


def prepare(settings: DeepCORAL, problem: Problem) -> Start:
    return mixed(
        problem, settings, terms=lambda source, target, _: [CovarianceAlignment(source, target, settings.strength)]
    )
