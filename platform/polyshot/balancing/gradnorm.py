"""GradNorm: loss weights that make tasks train at similar rates, learnt from gradient norms at the last shared layer.

    L = Σ w_t L_t;   w descends Σ |w_t n_t − mean(w n) r_t^α|,  n_t = ‖∇_W L_t‖,  r_t = (L_t / L_t(0)) / mean(L / L(0))
Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks" (ICML 2018),
algorithm 1, with the target held constant, Adam for w as in the authors' experiments, and Σ w_t = T after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polyshot.balancing.base import GramianBalancer

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's
_SMALLEST = 1e-3  # weights are kept positive, which the paper assumes and Adam does not know


class GradNorm(GramianBalancer):
    """Gramian at the last shared layer [T, T] and losses [T] → loss weights [T].

    State: `loss_weights`, `first_losses` (NaN until seen) and Adam's moments, [T] each, and the number of steps.
    """

    at_last_layer = True

    def __init__(
        self, tasks: int, alpha: float = 1.5, learning_rate: float = 0.025, loss_scales: Sequence[float] | None = None
    ):
        super().__init__(loss_scales)
        self._alpha = alpha
        self._learning_rate = learning_rate
        self._steps = 0
        self._state = {
            "loss_weights": np.ones(tasks),
            "first_losses": np.full(tasks, np.nan),
            "first_moment": np.zeros(tasks),
            "second_moment": np.zeros(tasks),
        }

    def solve(self, gramian: np.ndarray, losses: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        state = self._state
        used = state["loss_weights"][tasks]  # the paper updates the network with the weights from before the step
        unseen = np.isnan(state["first_losses"][tasks])
        state["first_losses"][tasks[unseen]] = losses[unseen]
        ratios = losses / np.maximum(state["first_losses"][tasks], 1e-12)
        norms = np.sqrt(gramian.diagonal())
        targets = (used * norms).mean() * (ratios / max(ratios.mean(), 1e-12)) ** self._alpha
        gradient = np.zeros(len(state["loss_weights"]))
        gradient[tasks] = norms * np.sign(used * norms - targets)
        self._steps += 1
        state["first_moment"] += (1 - _BETAS[0]) * (gradient - state["first_moment"])
        state["second_moment"] += (1 - _BETAS[1]) * (gradient**2 - state["second_moment"])
        first = state["first_moment"] / (1 - _BETAS[0] ** self._steps)
        second = state["second_moment"] / (1 - _BETAS[1] ** self._steps)
        moved = np.maximum(
            state["loss_weights"] - self._learning_rate * first / (np.sqrt(second) + _EPSILON), _SMALLEST
        )
        state["loss_weights"] = len(moved) * moved / moved.sum()
        return used

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self._steps} | {name: torch.from_numpy(value.copy()) for name, value in self._state.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        self._state = {name: state[name].cpu().numpy().copy() for name in self._state}
