"""AdamW and SGD for the training loop: torch's own updates, called by their functional forms.

The classes of `torch.optim` import torch's compiler as soon as one of them is built, which takes several seconds of
every process that trains; most runs here are over sooner. These do nothing else differently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from polyshot.models.stacking import Rows
from polyshot.study import training as sections


@dataclass(frozen=True)
class _Group:
    parameters: list[nn.Parameter]
    weight_decay: float
    factor: float  # of the learning rate
    state: dict[str, list[Tensor]]  # for each buffer one tensor per parameter


class Optimiser(ABC):
    """Changes parameters in place, by their gradients; those without one stay as they are."""

    buffers: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        settings: sections.Optimiser,
        parameters: Iterable[nn.Parameter],
        without_decay: Iterable[nn.Parameter] = (),
        factors: Mapping[nn.Parameter, float] | None = None,
    ):
        """`factors`: of the learning rate, for the parameters that have one of their own."""
        self.learning_rate = settings.learning_rate
        by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
        for parameter in parameters:
            by_factor.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
        self._groups = [self._group(some, settings.weight_decay, factor) for factor, some in by_factor.items()]
        self._groups.append(self._group(list(without_decay), 0.0))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters, where torch's GradScaler looks for them."""
        return [{"params": group.parameters} for group in self._groups]

    def zero_grad(self) -> None:
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self._groups:
            rows = zip(group.parameters, *group.state.values(), strict=True)
            present = [row for row in rows if row[0].grad is not None]
            if present:
                parameters, *state = map(list, zip(*present, strict=True))
                gradients = [parameter.grad for parameter in parameters]
                self._update(parameters, gradients, group.weight_decay, self.learning_rate * group.factor, *state)

    def state_dict(self) -> dict[str, Any]:
        return {"groups": [group.state for group in self._groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group, saved in zip(self._groups, state["groups"], strict=True):
            for name, tensors in group.state.items():
                for mine, tensor in zip(tensors, saved[name], strict=True):
                    mine.copy_(tensor)

    @abstractmethod
    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        weight_decay: float,
        learning_rate: float,
        *state: list[Tensor],
    ) -> None: ...

    def _group(self, parameters: list[nn.Parameter], weight_decay: float, factor: float = 1.0) -> _Group:
        state = {name: [self._initial(name, parameter) for parameter in parameters] for name in self.buffers}
        return _Group(parameters, weight_decay, factor, state)

    def _initial(self, name: str, parameter: nn.Parameter) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(parameter, requires_grad=False)


class AdamW(Optimiser):
    """Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), with torch's defaults for β and ε."""

    buffers = ("steps", "means", "squares")

    def _initial(self, name: str, parameter: nn.Parameter) -> Tensor:
        return torch.zeros((), device=parameter.device) if name == "steps" else super()._initial(name, parameter)

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        weight_decay: float,
        learning_rate: float,
        *state: list[Tensor],
    ) -> None:
        steps, means, squares = state
        adamw(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )


class SGD(Optimiser):
    """Stochastic gradient descent with momentum; weight decay is an L2 penalty."""

    buffers = ("momenta",)

    def __init__(
        self,
        settings: sections.SGD,
        parameters: Iterable[nn.Parameter],
        without_decay: Iterable[nn.Parameter] = (),
        factors: Mapping[nn.Parameter, float] | None = None,
    ):
        super().__init__(settings, parameters, without_decay, factors)
        self._momentum = settings.momentum

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        weight_decay: float,
        learning_rate: float,
        *state: list[Tensor],
    ) -> None:
        momenta: list[Tensor | None] = [*state[0]]
        sgd(
            parameters,
            gradients,
            momenta,
            fused=True,
            weight_decay=weight_decay,
            momentum=self._momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class TaskRates:
    """Learning rates of single tasks: rows of parameters that move by a factor of what the optimiser moves them.

    Whole parameters have their factors in the optimiser itself (see `parameter_factors`).

    Both optimisers' updates, weight decay included, are proportional to the learning rate, so that this is the same as
    another rate for those rows; and the tasks' rows stay stacked in one parameter.
    """

    def __init__(self, factors: Sequence[tuple[Rows, float]]):
        self._factors = [(rows, factor) for rows, factor in factors if factor != 1 and rows.rows != slice(None)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Around the optimiser's step."""
        with torch.no_grad():
            before = [rows.parameter[rows.rows].clone() for rows, _ in self._factors]
        yield
        with torch.no_grad():
            for (rows, factor), old in zip(self._factors, before, strict=True):
                own = rows.parameter[rows.rows]
                own.copy_(old.lerp(own, factor))


def build_optimiser(
    settings: sections.Optimiser,
    parameters: Iterable[nn.Parameter],
    without_decay: Iterable[nn.Parameter] = (),
    factors: Mapping[nn.Parameter, float] | None = None,
) -> Optimiser:
    """The optimiser of `training.optimiser`; weight decay spares the parameters `without_decay`.

    `factors` multiply the learning rate of those parameters that have one.
    """
    if isinstance(settings, sections.SGD):
        return SGD(settings, parameters, without_decay, factors)
    return AdamW(settings, parameters, without_decay, factors)


def parameter_factors(rates: Iterable[tuple[Rows, float]]) -> dict[nn.Parameter, float]:
    """Of the rates of rows, those that are of whole parameters; several of one parameter are multiplied."""
    factors: dict[nn.Parameter, float] = {}
    for rows, factor in rates:
        if rows.rows == slice(None):
            factors[rows.parameter] = factors.get(rows.parameter, 1.0) * factor
    return factors
