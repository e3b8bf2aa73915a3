"""The optimisers against the classes of `torch.optim`, which they must equal bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers_training import make_study
from torch import nn

from polyshot.training.optimisers import build_optimiser

KINDS = ["adamw", "sgd"]


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def _settings(kind):
    values = {"training.optimiser.kind": kind, "training.optimiser.learning_rate": 0.05}
    return make_study(values | {"training.optimiser.weight_decay": 0.1}).training.optimiser


def _ours(kind, model):
    return build_optimiser(_settings(kind), model[0].parameters(), without_decay=model[2].parameters())


def _theirs(kind, model):
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.0}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True)
    return torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1, fused=True)


def _gradients(model, step):
    rows = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
    loss = model(rows).square().mean() if step % 3 else model[0](rows).square().mean()  # at times the head has none
    loss.backward()


def _same(model, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_torchs_own(kind):
    model, reference = _model(), _model()
    ours, theirs = _ours(kind, model), _theirs(kind, reference)
    for step in range(1, 8):
        ours.learning_rate = theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = 0.05 / step
        for network, optimiser in ((model, ours), (reference, theirs)):
            optimiser.zero_grad()
            _gradients(network, step)
            optimiser.step()
        assert _same(model, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_is_all_that_it_takes_to_go_on(kind):
    model, other = _model(), _model()
    first = _ours(kind, model)
    for step in (1, 2):
        _gradients(model, step)
        first.step()
    other.load_state_dict(model.state_dict())
    second = _ours(kind, other)
    second.load_state_dict(first.state_dict())
    for network, optimiser in ((model, first), (other, second)):
        optimiser.zero_grad()
        _gradients(network, 4)
        optimiser.step()
    assert _same(model, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_scaler_can_unscale_and_skip(kind):
    model, reference = _model(), _model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, theirs = _ours(kind, model), _theirs(kind, reference)
    for weight in (1.0, float("inf"), 1.0):
        ours.zero_grad()
        theirs.zero_grad()
        rows = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
        scaler.scale(weight * model(rows).square().mean()).backward()
        scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        if weight == 1.0:
            reference(rows).square().mean().backward()
            theirs.step()
        torch.testing.assert_close(list(model.parameters()), list(reference.parameters()))
    assert scaler.get_scale() == 512.0


def test_training_does_not_import_torchs_compiler():
    """It takes longer than many a training."""
    script = """
import sys, torch
from torch import nn
from polyshot.study.training import AdamW
from polyshot.training.optimisers import build_optimiser
model = nn.Linear(2, 2)
optimiser = build_optimiser(AdamW(), model.parameters())
model(torch.ones(3, 2)).sum().backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimiser.step()
optimiser.zero_grad()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
