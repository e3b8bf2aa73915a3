"""What a balancer is: the bases that say what a method needs, so that no caller ever asks for its name.

A method is a subclass of exactly one of `LossBalancer`, `GramianBalancer` and `JacobianBalancer`; `balancing.backward`
gives it what it needs and fills the gradients. The rules that hold for all methods stand here:

- Task weights λ of a study (Σ λ = 1) enter as the preference vector where the method's paper has one. Elsewhere each
  loss is multiplied by T λ_t first (`loss_scales`), which methods that are invariant to the losses' scale do not feel.
- A task whose loss or gradient is exactly zero (a batch without its labels) takes no part in that batch.
- What is not finite stays so: NaN or infinite losses or gradients give NaN gradients and leave the state untouched, so
  that a loss scaler can skip the step and the loop can see that training diverged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from polyshot.seeds import derive_seed


class Balancer(nn.Module, ABC):
    """What all balancers have: the scales of the losses, and two hooks that most leave empty."""

    # True where `after_step` is to be called with the losses that the same batch has after the step.
    wants_losses_after_step = False

    def __init__(self, loss_scales: Sequence[float] | None = None):
        """`loss_scales` [T] multiply the losses before anything else; by default, and when all are 1, nothing does."""
        super().__init__()
        equal = loss_scales is None or all(scale == 1 for scale in loss_scales)
        # Not in state_dict: a resumed run takes the weights from its study.
        self.register_buffer("loss_scales", None if equal else torch.tensor(loss_scales), persistent=False)

    loss_scales: Tensor | None

    def scaled(self, losses: Tensor) -> Tensor:
        """[T] → [T]: each loss times its task's scale."""
        return losses if self.loss_scales is None else losses * self.loss_scales

    def after_step(self, losses: Tensor) -> None:
        """Called after each step with the same batch's new losses [T], where `wants_losses_after_step`."""

    def end_epoch(self, losses: Tensor) -> None:
        """Called after each epoch with the losses [T], averaged over the epoch and all workers."""


class LossBalancer(Balancer):
    """Losses [T] → the scalar [] that is descended. Parameters, if any, are learnt with the model's."""

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor: ...


class GramianBalancer(Balancer):
    """The Gramian G = J Jᵀ of the task gradients [T, T] → the weights w [T] of their sum Jᵀw.

    All of it happens in float64 on the CPU: T is small, and NumPy is faster there than any device.
    """

    # True: G is that of the last shared layer's weights, and w weighs the losses, for the heads as well (GradNorm).
    at_last_layer = False

    def weights(self, gramian: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """`gramian` [T, T] and `losses` [T] → w [T]: zero where there is no gradient, NaN when one is not finite."""
        if not np.isfinite(gramian).all():
            return np.full(len(gramian), np.nan)
        squared_norms = gramian.diagonal()
        if squared_norms.all():
            return self.solve(gramian, losses, np.arange(len(gramian)))
        weights = np.zeros(len(gramian))
        tasks = np.flatnonzero(squared_norms)
        if len(tasks):
            weights[tasks] = self.solve(gramian[np.ix_(tasks, tasks)], losses[tasks], tasks)
        return weights

    @abstractmethod
    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """The method itself, for the S tasks with a gradient: [S, S], [S] and their indices [S] → w [S]."""


class JacobianBalancer(Balancer):
    """The Jacobian J [T, P], one row per task → the direction [P], for methods that look at single coordinates."""

    @abstractmethod
    def aggregate(self, jacobian: Tensor) -> Tensor: ...


class Draws:
    """Random numbers as a function of (seed, number of draws before): the same on all workers and after a resume."""

    def __init__(self, seed: int):
        self._seed = seed
        self.count = 0

    def next(self, device: torch.device | str = "cpu") -> torch.Generator:
        self.count += 1
        return torch.Generator(device).manual_seed(derive_seed(self._seed, "balancer", self.count))
