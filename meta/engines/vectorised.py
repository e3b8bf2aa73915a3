"""The inner loops of all tasks of a meta-batch at once, differentiated as a whole, and compiled where that pays.

The meta-gradient is learn2learn's to rounding; tests hold it to 1e-8 in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Learner, by_autograd, by_transform
from polyshot.meta.learners.gradient import GradientLearner

# A compilation takes half a minute (MLP) to two minutes (CNN), and saves a third (CNN) or more of what comes after it.
_REPAYS_SECONDS = 240.0
_TIMED = 10  # calls before it is known how long one takes
# Inductor's reordering to channels last costs grouped convolutions what they gain.
_COMPILER_OPTIONS: dict[str, Any] = {"layout_optimization": False}


class VectorisedEngine:
    """See `Engine`. Without compilation, gradients are recorded and differentiated by autograd."""

    def __init__(
        self,
        learner: Learner,
        layout: FlatLayout,
        *,
        compile: Literal["auto", "always", "never"],  # noqa: A002 - the study's word
        note: Callable[[str], None],
    ):
        self._learner = learner
        self._layout = layout
        self._note = note
        self._may_compile = compile != "never" and learner.forward_pass.way != "loop"
        self._compile_at_once = compile == "always"
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._calls = 0
        self._fastest = float("inf")  # seconds of one call
        is_first_order = isinstance(learner, GradientLearner) and learner.first_order
        self._differentiate = by_autograd(create_graph=not is_first_order)

    def gradient(self, flat: Tensor, episodes: Episodes, progress: float, remaining: int) -> tuple[Tensor, Tensor]:
        if self._compiled is None and self._may_compile and self._repays(remaining):
            self._compiled = self._compile()
        flat = flat.detach()  # or the compiler would prepare to differentiate what it is given once more
        at = torch.tensor(progress, dtype=flat.dtype, device=flat.device)
        if self._compiled is not None:
            try:
                return self._compiled(flat, at, *episodes.parts())
            except torch._dynamo.exc.TorchDynamoException as error:
                self._compiled, self._may_compile = None, False
                reason = next(filter(None, str(error).splitlines()), type(error).__name__)
                self._note(f"The meta-gradient is not compiled ({reason.strip()}); training goes on without.")
        return self._timed(flat, at, episodes)

    def _timed(self, flat: Tensor, progress: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        flat = flat.requires_grad_()
        loss = self._learner.loss(self._layout.split(flat), episodes, progress, self._differentiate)
        (gradient,) = torch.autograd.grad(loss, flat)
        self._calls += 1
        self._fastest = min(self._fastest, time.perf_counter() - started)
        return loss.detach(), gradient

    def _repays(self, remaining: int) -> bool:
        return self._compile_at_once or (self._calls >= _TIMED and remaining * self._fastest > _REPAYS_SECONDS)

    def _compile(self) -> Callable[..., tuple[Tensor, Tensor]]:
        learner, layout = self._learner, self._layout

        def gradient(flat: Tensor, progress: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
            def loss(flat: Tensor) -> Tensor:
                return learner.loss(layout.split(flat), Episodes(*parts), progress, by_transform)

            gradient, value = torch.func.grad_and_value(loss)(flat)
            return value, gradient

        return torch.compile(gradient, fullgraph=True, dynamic=False, options=_COMPILER_OPTIONS)
