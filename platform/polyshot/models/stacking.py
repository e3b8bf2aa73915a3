"""Modules of equal shape side by side, computed together: N copies cost one batched product instead of N small ones.

Sharing schemes build their per-task encoders, experts and gates with `stack`. The copies keep the weights that they
were drawn with, so that each starts as it would alone. What cannot be batched exactly runs one copy at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter, along its first axis, that belong to one copy or to one task."""

    parameter: nn.Parameter
    rows: slice


class Stacked(nn.Module, ABC):
    """N copies of one module. Every parameter has the copies one after another along its first axis."""

    def __init__(self, copies: int):
        super().__init__()
        self.copies = copies

    @abstractmethod
    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        """[B, ...] for all copies when `shared`, else [N, B, ...] with one batch for each → [N, B, ...]."""

    def rows(self, copy: int) -> Iterator[Rows]:
        """What belongs to one copy."""
        for parameter in self.parameters():
            length = len(parameter) // self.copies
            yield Rows(parameter, slice(copy * length, (copy + 1) * length))

    def state_of(self, copy: int) -> dict[str, Tensor]:
        """The state of one copy, as a module that stands alone takes it."""
        return {name: value[copy] for name, value in self.state_dict().items()}

    def by_copy(self) -> Iterator[Tensor]:
        """Every parameter as [N, P], one row for each copy."""
        for parameter in self.parameters():
            yield parameter.view(self.copies, -1)


def stack(modules: Sequence[nn.Module]) -> Stacked:
    """The modules side by side; they are used up, since their weights may be copied or taken over.

    Linear layers, batch and layer normalisation and elementwise modules, and `nn.Sequential`s of them, are batched.
    """
    first = modules[0]
    alike = len({str(module) for module in modules}) == 1
    return _stack(modules) if alike and not has_tied_parameters(first) else SideBySide(modules)


def _stack(modules: Sequence[nn.Module]) -> Stacked:
    first = modules[0]
    hooked = first._forward_hooks or first._forward_pre_hooks
    if type(first) is nn.Sequential and not hooked:
        return StackedSequential([_stack(stage) for stage in zip(*modules, strict=True)], len(modules))
    if type(first) in _ELEMENTWISE and not hooked:
        return Elementwise(first, len(modules))
    if type(first) in _BATCHED and not hooked:
        return _BATCHED[type(first)](modules)
    return SideBySide(modules)


def has_tied_parameters(module: nn.Module) -> bool:
    """Whether a parameter has two places in `module`; batched copies would part them."""
    named = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return len(named) != len(list(module.parameters()))


def _expanded(inputs: Tensor, copies: int, shared: bool) -> Tensor:
    return inputs.expand(copies, *inputs.shape) if shared else inputs


def _stacked_parameter(parameters: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([p.detach() for p in parameters]), requires_grad=parameters[0].requires_grad)


class StackedLinear(Stacked):
    """N linear layers: [B, I] or [N, B, I] → [N, B, O]. A batch that all share takes a single matrix product."""

    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__(len(layers))
        self.weight = _stacked_parameter([layer.weight for layer in layers])  # [N, O, I]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _stacked_parameter(biases) if biases else None  # [N, O]

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        if shared:
            bias = None if self.bias is None else self.bias.flatten()
            products = F.linear(inputs, self.weight.flatten(0, 1), bias)  # [B, N·O]
            return products.unflatten(-1, self.weight.shape[:2]).movedim(-2, 0)
        products = torch.matmul(inputs, self.weight.mT)
        return products if self.bias is None else products + self.bias[:, None]


class StackedLayerNorm(Stacked):
    """N layer normalisations over the last axis: [N, B, H] → [N, B, H]."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norms: Sequence[nn.LayerNorm]):
        super().__init__(len(norms))
        self.shape, self.eps = norms[0].normalized_shape, norms[0].eps
        self.weight = None if norms[0].weight is None else _stacked_parameter([norm.weight for norm in norms])
        self.bias = None if norms[0].bias is None else _stacked_parameter([norm.bias for norm in norms])

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        values = F.layer_norm(_expanded(inputs, self.copies, shared), self.shape, eps=self.eps)
        if self.weight is not None:
            values = values * self.weight[:, None]
        return values if self.bias is None else values + self.bias[:, None]


class StackedBatchNorm(Stacked):
    """N batch normalisations as one with N·H channels: [N, B, H] → [N, B, H].

    Native, and not mapped over copies: `torch.func.vmap` over batch normalisation gives wrong second derivatives.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm1d]):
        super().__init__(len(norms))
        first = norms[0]
        self.norm = nn.BatchNorm1d(
            len(norms) * first.num_features, first.eps, first.momentum, first.affine, first.track_running_stats
        )
        states = [norm.state_dict() for norm in norms]
        joined = {
            name: torch.cat([state[name] for state in states]) if value.dim() else value.clone()
            for name, value in states[0].items()
        }
        self.norm.load_state_dict(joined, assign=True)
        for name, parameter in first.named_parameters():
            self.norm.get_parameter(name).requires_grad_(parameter.requires_grad)

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        channels = _expanded(inputs, self.copies, shared).transpose(0, 1)  # [B, N, H]
        return self.norm(channels.flatten(1)).unflatten(1, channels.shape[1:]).transpose(0, 1)

    def state_of(self, copy: int) -> dict[str, Tensor]:
        joined = self.norm.state_dict().items()
        return {name: value.chunk(self.copies)[copy] if value.dim() else value for name, value in joined}


class Elementwise(Stacked):
    """A module without parameters that treats every number alone, such as an activation or dropout."""

    def __init__(self, module: nn.Module, copies: int):
        super().__init__(copies)
        self.module = module

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        # Cloned, because the module may work in place and each copy drops units of its own.
        return self.module(_expanded(inputs, self.copies, shared).clone() if shared else inputs)


class StackedSequential(Stacked):
    """Stages one after another, each of N copies."""

    def __init__(self, stages: Sequence[Stacked], copies: int, name: str = ""):
        """`name`: of the stages in the modules that were stacked, where they are an attribute."""
        super().__init__(copies)
        self.stages = nn.ModuleList(stages)
        self._prefix = f"{name}." if name else ""

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        for stage in self.stages:
            inputs, shared = stage(inputs, shared=shared), False
        return _expanded(inputs, self.copies, shared)

    def state_of(self, copy: int) -> dict[str, Tensor]:
        states = [stage.state_of(copy) for stage in self.stages]  # type: ignore[operator]
        return {f"{self._prefix}{i}.{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def rows(self, copy: int) -> Iterator[Rows]:
        for stage in self.stages:
            yield from stage.rows(copy)  # type: ignore[operator]

    def by_copy(self) -> Iterator[Tensor]:
        for stage in self.stages:
            yield from stage.by_copy()  # type: ignore[operator]


class SideBySide(Stacked):
    """N modules of any kind, run one after another."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__(len(modules))
        self.each = nn.ModuleList(modules)

    def forward(self, inputs: Tensor, *, shared: bool) -> Tensor:
        return torch.stack([module(inputs if shared else inputs[copy]) for copy, module in enumerate(self.each)])

    def state_of(self, copy: int) -> dict[str, Tensor]:
        return self.each[copy].state_dict()

    def rows(self, copy: int) -> Iterator[Rows]:
        for parameter in self.each[copy].parameters():
            yield Rows(parameter, slice(None))

    def by_copy(self) -> Iterator[Tensor]:
        for parameters in zip(*(module.parameters() for module in self.each), strict=True):
            yield torch.stack(parameters).flatten(1)


_BATCHED: dict[type[nn.Module], Callable[..., Stacked]] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.BatchNorm1d: StackedBatchNorm,
}
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
)
