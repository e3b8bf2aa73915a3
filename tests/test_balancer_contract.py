"""What every balancer of losses promises to the loop. A new balancer joins by a line in BALANCERS, with its claims."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers_training import make_study
from hypothesis import given, settings
from hypothesis import strategies as st

from polyshot.balancing import build_balancer


@dataclass(frozen=True)
class Claims:
    """A balancer's settings in a study, and which of the properties below it has."""

    values: dict
    is_linear: bool = False  # c · losses -> c · loss
    is_convex_sum: bool = False  # the gradient by losses is on the simplex


BALANCERS = {
    "fixed": Claims({"balance.kind": "fixed"}, is_linear=True, is_convex_sum=True),
    "uncertainty": Claims({"balance.kind": "uncertainty"}),
    "dwa": Claims({"balance.kind": "dwa"}, is_linear=True),
    "gls": Claims({"balance.kind": "gls"}),
    "famo": Claims({"balance.kind": "famo"}),
    "stch": Claims({"balance.kind": "stch"}),
    "imtl_l": Claims({"balance.kind": "imtl_l"}),
}
LOSSES = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)
WEIGHTS = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)


@pytest.fixture(params=BALANCERS.values(), ids=BALANCERS.keys())
def claims(request) -> Claims:
    return request.param


def _balancer(claims: Claims, weights=(2.0, 1.0, 1.0)):
    """Of three tasks of one kind, so that tasks can be exchanged."""
    tasks = {name: {"kind": "regression", "weight": weight} for name, weight in zip("abc", weights, strict=True)}
    return build_balancer(make_study(claims.values, tasks))


def _gradient(balancer, losses) -> torch.Tensor:
    given = torch.tensor(losses, requires_grad=True)
    (gradient,) = torch.autograd.grad(balancer(given), given)
    return gradient


def test_it_makes_one_number_of_the_losses(claims):
    assert _balancer(claims)(torch.tensor([1.0, 2.0, 3.0])).shape == ()


@given(losses=LOSSES, factor=st.floats(0.01, 100))
@settings(max_examples=20)
def test_a_linear_one_scales_with_its_losses(losses, factor):
    for claims in filter(lambda claims: claims.is_linear, BALANCERS.values()):
        balancer, given = _balancer(claims), torch.tensor(losses)
        torch.testing.assert_close(balancer(factor * given), factor * balancer(given))


@given(losses=LOSSES, weights=WEIGHTS)
@settings(max_examples=20)
def test_weights_of_a_convex_sum_are_on_the_simplex(losses, weights):
    for claims in filter(lambda claims: claims.is_convex_sum, BALANCERS.values()):
        gradient = _gradient(_balancer(claims, weights), losses)
        assert (gradient >= 0).all()
        assert gradient.sum().item() == pytest.approx(1, rel=1e-5)


def test_no_task_is_pushed_uphill(claims):
    assert (_gradient(_balancer(claims), [0.5, 2.0, 1.0]) >= 0).all()


@given(losses=LOSSES, weights=WEIGHTS, order=st.permutations(range(3)))
@settings(max_examples=20)
def test_the_order_of_tasks_changes_nothing(losses, weights, order):
    for claims in BALANCERS.values():
        straight, turned = _balancer(claims, weights), _balancer(claims, [weights[task] for task in order])
        turned_losses = [losses[task] for task in order]
        torch.testing.assert_close(turned(torch.tensor(turned_losses)), straight(torch.tensor(losses)))
        torch.testing.assert_close(_gradient(turned, turned_losses), _gradient(straight, losses)[list(order)])


def test_its_state_makes_another_one_like_it(claims):
    balancer, other = _balancer(claims), _balancer(claims)
    for losses in ([1.0, 2.0, 3.0], [0.5, 1.0, 9.0]):
        balancer(torch.tensor(losses))
    other.load_state_dict(balancer.state_dict())
    losses = torch.tensor([3.0, 1.0, 2.0])
    assert torch.equal(balancer(losses), other(losses))


def test_fixed_weights_are_the_studys_made_to_sum_to_one():
    balancer = _balancer(BALANCERS["fixed"], (3.0, 1.0, 0.0))
    assert _gradient(balancer, [1.0, 1.0, 1.0]).tolist() == [0.75, 0.25, 0.0]
    assert balancer(torch.tensor([4.0, 8.0, 100.0])).item() == pytest.approx(5.0)
