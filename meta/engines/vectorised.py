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
from polyshot.meta.engines.products import rewrite_products
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Learner, by_autograd
from polyshot.meta.learners.gradient import GradientLearner

# A compilation takes half a minute (MLP) to two minutes (CNN), and saves a third (CNN) or more of what comes after it.
_REPAYS_SECONDS = 240.0
_TIMED = 10  # calls before it is known how long one takes
# Inductor's reordering to channels last costs grouped convolutions what they gain. Called from C++, what it makes of a
# processor's small operations is a twentieth faster.
_COMPILER_OPTIONS: dict[str, Any] = {"layout_optimization": False}
_ON_PROCESSORS: dict[str, Any] = {"cpp_wrapper": True}
_Shapes = tuple[torch.Size | None, ...]  # of the parts of a meta-batch


class _NotRecordedError(Exception):
    """The operations depend on the values of tensors, or leave torch."""


def _channels_innermost(weight: Tensor) -> Tensor:
    """The kernels of a convolution as `meta.convolutions` wants them, once for all tasks and steps."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


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
        # What is recorded holds for one shape of meta-batches, and all are alike.
        self._compiled: dict[_Shapes, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._calls = 0
        self._fastest = float("inf")  # seconds of one call
        is_first_order = isinstance(learner, GradientLearner) and learner.first_order
        self._differentiate = by_autograd(create_graph=not is_first_order)

    def gradient(self, flat: Tensor, episodes: Episodes, progress: float, remaining: int) -> tuple[Tensor, Tensor]:
        flat = flat.detach()  # or the compiler would prepare to differentiate what it is given once more
        at = torch.tensor(progress, dtype=flat.dtype, device=flat.device)
        parts = episodes.parts()
        shapes = tuple(None if part is None else part.shape for part in parts)
        if self._may_compile and (shapes in self._compiled or self._repays(remaining)):
            try:
                if shapes not in self._compiled:
                    self._compiled[shapes] = self._compile(flat, at, *parts)
                return self._compiled[shapes](flat, at, *parts)
            except (_NotRecordedError, torch._dynamo.exc.TorchDynamoException) as error:
                self._may_compile = False
                reason = next(filter(None, str(error).splitlines()), type(error).__name__)
                self._note(f"The meta-gradient is not compiled ({reason.strip()}); training goes on without.")
        return self._timed(flat, at, episodes)

    def _timed(self, flat: Tensor, progress: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        found = self._by_autograd(flat, progress, *episodes.parts())
        self._calls += 1
        self._fastest = min(self._fastest, time.perf_counter() - started)
        return found

    def _by_autograd(self, flat: Tensor, progress: Tensor, *parts: Tensor | None) -> tuple[Tensor, Tensor]:
        flat = flat.detach().requires_grad_()
        episodes = Episodes(*parts)  # type: ignore[arg-type]
        weights = self._layout.split(flat)
        if self._learner.forward_pass.by_products:
            weights = {name: _channels_innermost(value) for name, value in weights.items()}
        loss = self._learner.loss(weights, episodes, progress, self._differentiate)
        (gradient,) = torch.autograd.grad(loss, flat)
        return loss.detach(), gradient

    def _repays(self, remaining: int) -> bool:
        return self._compile_at_once or (self._calls >= _TIMED and remaining * self._fastest > _REPAYS_SECONDS)

    def recorded(self, *example: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
        """What `gradient` does with arguments of these shapes (flat, progress and the parts of episodes), as one graph.

        Autograd's own operations are what is recorded: the compiler's way through `torch.func` and through
        `torch.autograd.Function` gives another gradient for the second derivative of the latter (torch 2.15).
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        recorded = make_fx(self._by_autograd, tracing_mode="fake")(*example)
        rewrite_products(recorded)
        return recorded

    def _compile(self, flat: Tensor, *rest: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
        """
        Raises:
            _NotRecordedError: for a network that looks at the values of tensors.
        """
        try:
            recorded = self.recorded(flat, *rest)
        except RuntimeError as error:
            raise _NotRecordedError(str(error)) from error
        options = _COMPILER_OPTIONS | (_ON_PROCESSORS if flat.device.type == "cpu" else {})
        return torch.compile(recorded, fullgraph=True, dynamic=False, options=options)
