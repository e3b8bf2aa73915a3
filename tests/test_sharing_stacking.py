"""Modules side by side give what each gives alone, whatever they are made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polyshot.models.stacking import SideBySide, Stacked, stack

COPIES, ROWS, INPUTS = 3, 6, 4


class Doubled(nn.Module):
    """A module of the user's, with one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, INPUTS)
        self.twice = nn.Sequential(self.layer, nn.Tanh(), self.layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(x)


def tied() -> nn.Module:
    layer = nn.Linear(INPUTS, INPUTS)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked() -> nn.Module:
    layer = nn.Linear(INPUTS, 5)
    layer.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return layer


MODULES = {
    "linear": (lambda: nn.Linear(INPUTS, 5), True),
    "linear without bias": (lambda: nn.Linear(INPUTS, 5, bias=False), True),
    "mlp": (lambda: nn.Sequential(nn.Linear(INPUTS, 7), nn.GELU(), nn.Sequential(nn.Linear(7, 2), nn.Tanh())), True),
    "activation first": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(INPUTS, 5)), True),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, 5), nn.BatchNorm1d(5)), True),
    "bare batch norm": (lambda: nn.BatchNorm1d(INPUTS, affine=False, track_running_stats=False), True),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(INPUTS), nn.Linear(INPUTS, 5), nn.LayerNorm(5)), True),
    "bare layer norm": (lambda: nn.LayerNorm(INPUTS, elementwise_affine=False), True),
    "empty": (nn.Sequential, True),
    "one unknown stage": (lambda: nn.Sequential(nn.Linear(INPUTS, 5), nn.PReLU(), nn.Linear(5, 3)), True),
    "tied layers": (tied, False),
    "the user's own": (Doubled, False),
    "with a hook": (hooked, False),
}


@pytest.fixture(params=MODULES)
def modules(request) -> tuple[list[nn.Module], Stacked, bool]:
    make, batched = MODULES[request.param]
    torch.manual_seed(0)
    alone = [make().double() for _ in range(COPIES)]
    with torch.no_grad():
        for module in alone:
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return alone, stack(copy.deepcopy(alone)), batched


@pytest.mark.parametrize("shared", [True, False])
def test_each_copy_gives_what_it_gives_alone(modules, shared):
    alone, together, batched = modules
    assert isinstance(together, SideBySide) != batched
    inputs = torch.randn((ROWS, INPUTS) if shared else (COPIES, ROWS, INPUTS), dtype=torch.float64)
    for train in (True, True, False):  # the last with the statistics that the first two left
        values = [m.train(train)((inputs if shared else inputs[i]).clone()) for i, m in enumerate(alone)]
        torch.testing.assert_close(
            together.train(train)(inputs, shared=shared), torch.stack(values), rtol=0, atol=1e-12
        )


def test_rows_and_columns_by_copy_are_each_copys_parameters(modules):
    alone, together, _ = modules
    expected = [torch.cat([p.flatten() for p in m.parameters()]) if list(m.parameters()) else None for m in alone]
    by_copy = list(together.by_copy())
    for index, values in enumerate(expected):
        rows = [part.parameter[part.rows].flatten() for part in together.rows(index)]
        if values is None:
            assert rows == [] == by_copy
        else:
            assert torch.equal(torch.cat(rows), values)
            assert torch.equal(torch.cat([parameters[index] for parameters in by_copy]), values)


def test_each_copy_has_the_state_that_it_has_alone(modules):
    alone, together, _ = modules
    for copy_, module in enumerate(alone):
        state = module.state_dict()
        assert list(together.state_of(copy_)) == list(state)
        assert all(torch.equal(together.state_of(copy_)[name], value) for name, value in state.items())


def test_copies_drop_units_of_their_own():
    dropout = stack([nn.Dropout(0.5) for _ in range(COPIES)])
    first, second, third = dropout(torch.ones(50, 8), shared=True)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_frozen_layer_stays_frozen():
    layers = [nn.Linear(2, 2).requires_grad_(False) for _ in range(COPIES)]
    assert not any(p.requires_grad for p in stack(layers).parameters())
