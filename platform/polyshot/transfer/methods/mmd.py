"""MMD: mixed training with features of equal distributions in source and target.

The squared maximum mean discrepancy of Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), equation 5, with several
Gaussian kernels as in Long et al., "Learning Transferable Features with Deep Adaptation Networks" (ICML 2015): here the
mean of those with bandwidths of 1/4, 1/2, 1, 2 and 4 times the mean squared distance in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyshot.study.transfer import MMD
from polyshot.transfer.mixing import Alignment, mixed
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start

_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


class DistributionAlignment(Alignment):
    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        return squared_mmd(source, target)


def squared_mmd(source: Tensor, target: Tensor) -> Tensor:
    """[N, H] and [M, H] → [], at least 0."""
    both = torch.cat([source, target])
    norms = both.square().sum(1)
    squares = (norms[:, None] + norms - 2 * both @ both.T).clamp(min=0)  # [N + M, N + M]
    width = squares.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squares / (factor * width)) for factor in _BANDWIDTHS]).mean(0)
    n = len(source)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def prepare(settings: MMD, problem: Problem) -> Start:
    return mixed(
        problem, settings, terms=lambda source, target, _: [DistributionAlignment(source, target, settings.strength)]
    )
