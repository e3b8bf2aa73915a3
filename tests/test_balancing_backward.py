"""Gradients of real models: every route gives the same, heads get their own, workers change nothing."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers_training import make_prepared, make_study

from polyshot.balancing import build_balancer
from polyshot.balancing.backward import HardSharingBackward, SharedBackward, build_backward
from polyshot.balancing.trunk import Autograd, Chain, batched_gradients, build_trunk
from polyshot.models.multitask import build_model
from polyshot.training.loop import TrainingRun
from polyshot.training.losses import TaskLosses

ROWS = 48


class Step:
    """A model with its losses on one batch, in float64."""

    def __init__(self, values: dict, tasks: dict | None = None):
        self.study = make_study(values, tasks)
        prepared = make_prepared(self.study)
        self.batch = prepared.train
        self.model = build_model(self.study, 6, prepared.targets).double()
        self.balancer = build_balancer(self.study).double()
        self.losses = TaskLosses(self.study, prepared.targets, self.model.layout)

    def gradients(self, route, rows: slice = slice(0, ROWS)) -> list[torch.Tensor]:
        counts = self.batch.mask[:ROWS].sum(0).clamp(min=1)
        torch.manual_seed(0)
        outputs = route.forward(self.batch.features[rows].double())
        sums = self.losses(outputs, self.batch.targets[rows].double(), self.batch.mask[rows])
        route.backward(sums / counts)
        found = [parameter.grad.clone() for parameter in self.model.parameters()]
        self.model.zero_grad()
        return found


@pytest.mark.parametrize("normalisation", ["none", "batch", "layer"])
@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("upgrad", "parameters"),
        ("mgda", "features"),
        ("graddrop", "parameters"),
        ("graddrop", "features"),
        ("gradnorm", ""),
    ],
)
def test_every_route_gives_the_same_gradients(kind, at, normalisation):
    values = {"balance.kind": kind, "model.encoder.normalisation": normalisation, "model.encoder.dropout": 0.2}
    step = Step(values | ({"balance.at": at} if at else {}))
    place = at or "parameters"
    fast = build_backward(step.study, step.model, step.balancer)
    assert isinstance(fast, HardSharingBackward)
    assert isinstance(fast._trunk, Chain)
    expected = step.gradients(fast)
    fresh = build_balancer(step.study).double()
    routes = [HardSharingBackward(step.model, fresh, Autograd(step.model.sharing.encoder), place)]
    if place == "parameters":
        routes.append(SharedBackward(step.model, build_balancer(step.study).double()))
    for route in routes:
        torch.testing.assert_close(step.gradients(route), expected, rtol=1e-8, atol=1e-10)


def test_weights_all_one_are_the_plain_gradient():
    step = Step({"balance.kind": "fairgrad", "balance.alpha": 0.0}, {key: {"kind": "regression"} for key in "abc"})
    shared = len(list(step.model.sharing.parameters()))
    found = step.gradients(build_backward(step.study, step.model, step.balancer))
    fixed = make_study({}, {key: {"kind": "regression"} for key in "abc"})
    plain = step.gradients(build_backward(fixed, step.model, build_balancer(fixed).double()))
    torch.testing.assert_close(found[:shared], plain[:shared], rtol=1e-6, atol=1e-8)
    # The heads descend their own losses, three times what the mean of three losses gives them.
    torch.testing.assert_close(found[shared:], [3 * gradient for gradient in plain[shared:]], rtol=1e-6, atol=1e-8)


def test_task_weights_scale_the_losses_where_the_method_has_no_preference():
    tasks = {"a": {"kind": "regression", "weight": 3.0}, "b": {"kind": "regression"}}
    step = Step({"balance.kind": "fairgrad", "balance.alpha": 0.0}, tasks)
    fixed = make_study({}, tasks)
    shared = len(list(step.model.sharing.parameters()))
    found = step.gradients(build_backward(step.study, step.model, step.balancer))
    plain = step.gradients(build_backward(fixed, step.model, build_balancer(fixed).double()))
    torch.testing.assert_close(found[:shared], plain[:shared], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sharing", ["soft", "cross_stitch", "attention", "mmoe", "cgc", "ple"])
@pytest.mark.parametrize("kind", ["nash_mtl", "graddrop"])
def test_every_sharing_scheme_gets_a_gradient_everywhere(sharing, kind):
    step = Step({"balance.kind": kind, "model.sharing.kind": sharing})
    found = step.gradients(build_backward(step.study, step.model, step.balancer))
    assert all(gradient.isfinite().all() for gradient in found)
    assert sum(gradient.any().item() for gradient in found) >= len(found) - 1


class Threads:
    """Workers that are threads: sums over them, in the order of their ranks."""

    def __init__(self, size: int):
        self.size = size
        self._parts: dict[int, torch.Tensor] = {}
        self._barrier = threading.Barrier(size, timeout=60)
        self._rank = threading.local()

    def run(self, work) -> list:
        results = [None] * self.size

        def one(rank: int) -> None:
            self._rank.value = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self._parts[self._rank.value] = tensor.detach().clone()
        self._barrier.wait()
        total = sum(self._parts[rank] for rank in range(self.size))
        self._barrier.wait()
        return total


@pytest.mark.parametrize(
    ("kind", "at", "sharing"),
    [
        ("nash_mtl", "parameters", "hard"),
        ("pcgrad", "features", "hard"),
        ("graddrop", "parameters", "hard"),
        ("gradnorm", None, "hard"),
        ("cagrad", "parameters", "mmoe"),
        ("uncertainty", None, "hard"),
        ("gls", None, "hard"),
    ],
)
def test_the_number_of_workers_does_not_change_the_update(kind, at, sharing):
    values = {"balance.kind": kind, "model.sharing.kind": sharing} | ({"balance.at": at} if at else {})
    alone = Step(values)
    expected = alone.gradients(build_backward(alone.study, alone.model, alone.balancer))
    learnt = [parameter.grad for parameter in alone.balancer.parameters()]
    workers = Threads(2)
    # Made one after another: how a model draws its weights is no business of threads.
    steps = [Step(values) for _ in range(2)]
    shares = [slice(0, 20), slice(20, ROWS)]
    routes = [build_backward(step.study, step.model, step.balancer, world=workers) for step in steps]
    found = workers.run(lambda rank: steps[rank].gradients(routes[rank], shares[rank]))
    if learnt or kind == "gls":  # one scalar: gradients are yet to be averaged, as the data-parallel wrapper does
        found = [[(a + b) / 2 for a, b in zip(*found, strict=True)]] * 2
    for worker in range(2):
        torch.testing.assert_close(found[worker], expected, rtol=1e-6, atol=1e-9)
        own = [parameter.grad for parameter in steps[worker].balancer.parameters()]
        torch.testing.assert_close(own, learnt, rtol=1e-6, atol=1e-9)


def test_an_operation_without_a_batching_rule_is_differentiated_row_by_row():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):  # noqa: ARG004
            return 2 * values

        @staticmethod
        def backward(ctx, gradient):  # noqa: ARG004
            return torch.from_numpy(2 * gradient.numpy())  # leaves torch, as a user's own code may

    values = torch.ones(3, requires_grad=True)
    gradients = batched_gradients()
    (found,) = gradients(Doubled.apply(values), [values], torch.eye(3))
    assert torch.equal(found, 2 * torch.eye(3))


def test_an_encoder_that_only_claims_to_be_a_chain_is_not_believed():
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

        def forward(self, features):
            return features + self.blocks(features)

    assert isinstance(build_trunk(Residual()), Autograd)


@pytest.mark.parametrize("kind", ["famo", "dwa", "gradvac", "nash_mtl", "graddrop", "uncertainty"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(kind):
    study = make_study({"balance.kind": kind, "training.epochs": 4})
    prepared = make_prepared(study)
    whole = TrainingRun(study, prepared)
    assert len(list(whole.epochs())) == 4
    before, after = TrainingRun(study, prepared), TrainingRun(study, prepared)
    epochs = before.epochs()
    next(epochs), next(epochs)
    after.load_state_dict(before.state_dict())
    assert [epoch.metrics for epoch in after.epochs()] == [epoch.metrics for epoch in whole.history[2:]]
