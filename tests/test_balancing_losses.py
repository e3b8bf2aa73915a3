"""Balancers of losses: each against its paper's formula or TorchJD, and its state."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_training import make_study
from torchjd import scalarization

from polyshot.balancing import build_balancer, check_balancer
from polyshot.balancing.dwa import DWA
from polyshot.balancing.famo import FAMO
from polyshot.balancing.fixed import FixedWeights
from polyshot.balancing.gls import GeometricMean
from polyshot.balancing.imtl_l import IMTLL
from polyshot.balancing.random import RandomWeights
from polyshot.balancing.stch import SmoothTchebycheff
from polyshot.balancing.uncertainty import Uncertainty
from polyshot.errors import StudyError

EQUAL = [1 / 3] * 3
LOSSES = torch.tensor([0.5, 2.0, 1.2])


def gradient(balancer, losses: torch.Tensor) -> torch.Tensor:
    given = losses.clone().requires_grad_()
    return torch.autograd.grad(balancer(given), given)[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: Uncertainty([True] * 3), lambda: scalarization.UW(3)),
        (lambda: IMTLL(3), lambda: scalarization.IMTLL(3)),
        (lambda: GeometricMean(EQUAL), scalarization.GeometricMean),
        (lambda: SmoothTchebycheff(EQUAL, 0.1), lambda: scalarization.STCH(0.1)),
        (lambda: DWA(3), scalarization.DWA),
        (lambda: FAMO(3), lambda: scalarization.FAMO(3)),
    ],
    ids=["uncertainty", "imtl_l", "gls", "stch", "dwa", "famo"],
)
def test_it_is_what_torchjd_computes(ours, theirs):
    mine, peer = ours(), theirs()
    optimisers = [torch.optim.SGD(b.parameters(), lr=0.1) for b in (mine, peer) if list(b.parameters())]
    losses = LOSSES
    for epoch in range(4):
        torch.testing.assert_close(mine(losses), peer(losses), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(mine, losses), gradient(peer, losses), rtol=1e-5, atol=1e-6)
        after = losses * torch.tensor([0.9, 0.5, 0.7])
        if isinstance(mine, FAMO):
            mine.after_step(after)
            peer.update(after)
            torch.testing.assert_close(mine.logits, peer._w.detach(), rtol=1e-4, atol=1e-6)
        elif isinstance(mine, DWA):
            mine.end_epoch(losses)
            peer.reset() if epoch == -1 else peer.step()
        elif len(optimisers) == 2:
            for balancer, optimiser in zip((mine, peer), optimisers, strict=True):
                optimiser.zero_grad()
                balancer(losses).backward()
                optimiser.step()
        losses = after


def test_a_classification_has_twice_the_weight_of_a_regression_under_uncertainty():
    balancer = build_balancer(
        make_study(
            {"balance.kind": "uncertainty"},
            dict.fromkeys("ab") | {"a": {"kind": "regression"}, "b": {"kind": "binary"}},
        )
    )
    assert gradient(balancer, torch.tensor([1.0, 1.0])).tolist() == [0.5, 1.0]


def test_random_weights_are_the_softmax_of_normal_numbers_and_the_same_on_every_worker():
    first, second = RandomWeights(0), RandomWeights(0)
    drawn = torch.stack([gradient(first, LOSSES) for _ in range(2000)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(2000))
    assert torch.equal(torch.stack([gradient(second, LOSSES) for _ in range(5)]), drawn[:5])
    centred = drawn.log() - drawn.log().mean(1, keepdim=True)  # normal with variance 1 − 1/3
    assert centred.var().item() == pytest.approx(2 / 3, rel=0.05)


def test_dwa_weighs_the_task_that_falls_slowly():
    balancer = DWA(2, temperature=1.0)
    balancer.end_epoch(torch.tensor([1.0, 1.0]))
    assert balancer.weights.tolist() == [1, 1]
    balancer.end_epoch(torch.tensor([0.5, 1.0]))
    ratio = math.exp(1 - 0.5)
    torch.testing.assert_close(balancer.weights, 2 * torch.tensor([1, ratio]) / (1 + ratio))


@pytest.mark.parametrize("kind", ["uncertainty", "gls", "famo", "imtl_l"])
def test_a_task_without_labels_in_a_batch_has_no_say(kind):
    balancer = build_balancer(make_study({"balance.kind": kind}, {key: {"kind": "regression"} for key in "abc"}))
    losses = torch.tensor([0.5, 0.0, 2.0], requires_grad=True)
    value = balancer(losses)
    gradients = torch.autograd.grad(value, [losses, *balancer.parameters()])
    assert value.isfinite()
    assert all(found.isfinite().all() for found in gradients)
    assert gradients[0][1] == 0 or not list(balancer.parameters())
    assert gradients[0][0] > 0
    for learnt in gradients[1:]:
        assert learnt[1] == 0


@pytest.mark.parametrize("make", [lambda: FAMO(3), lambda: DWA(3), lambda: RandomWeights(3), lambda: IMTLL(3)])
def test_its_state_makes_another_one_go_on_as_it_does(make, tmp_path):
    balancer, other = make(), make()
    for step in range(3):
        losses = LOSSES / (step + 1) ** torch.tensor([1.0, 0.5, 2.0])
        balancer(losses)
        balancer.after_step(losses * 0.9) if balancer.wants_losses_after_step else None
        balancer.end_epoch(losses)
    torch.save(balancer.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        torch.testing.assert_close(other(LOSSES), balancer(LOSSES), rtol=0, atol=0)
        if balancer.wants_losses_after_step:
            balancer.after_step(LOSSES * torch.tensor([0.5, 0.9, 1.0]))
            other.after_step(LOSSES * torch.tensor([0.5, 0.9, 1.0]))


def test_losses_that_are_no_numbers_do_not_reach_famos_state():
    balancer = FAMO(3)
    balancer(LOSSES)
    balancer.after_step(torch.tensor([1.0, float("nan"), 1.0]))
    assert balancer.logits.tolist() == [0, 0, 0]


def test_one_task_has_nothing_to_balance():
    for kind in ("nash_mtl", "gls", "graddrop"):
        assert isinstance(
            build_balancer(make_study({"balance.kind": kind}, {"a": {"kind": "regression"}})), FixedWeights
        )


def test_what_a_balancer_cannot_do_is_said_when_the_study_is_checked():
    weightless = {"a": {"kind": "regression", "weight": 0}, "b": {"kind": "regression"}}
    for values, tasks, words in (
        ({"balance.kind": "gls"}, weightless, "tasks.a.weight: is 0, which balance.kind 'gls' cannot balance"),
        (
            {"balance.kind": "mgda", "balance.at": "features", "model.sharing.kind": "mmoe"},
            None,
            "balance.at: 'features'",
        ),
        (
            {"balance.kind": "pcgrad", "training.precision": "float16"},
            None,
            "training.precision: float16 scales losses",
        ),
    ):
        with pytest.raises(StudyError) as caught:
            check_balancer(make_study(values, tasks))
        assert str(caught.value).startswith(words)
    check_balancer(make_study({}, weightless))
