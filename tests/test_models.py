"""The multi-task model: which outputs, weights and gradients belong to which task."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
import torch
from helpers_training import make_prepared, make_study
from torch import nn

from polyshot.data.targets import Target
from polyshot.models.heads import HeadLayout, StackedHeads
from polyshot.models.multitask import build_model
from polyshot.training.losses import TaskLosses

MIXED = {
    "a": {"kind": "regression"},
    "b": {"kind": "multiclass"},
    "c": {"kind": "binary"},
    "d": {"kind": "regression", "loss": "huber"},
    "e": {"kind": "regression", "loss": "mae"},
    "f": {"kind": "binary"},
    "g": {"kind": "regression"},
}
ALIKE = {name: {"kind": "regression"} for name in "abc"}


def _parts(tasks, values=None):
    study = make_study(values, tasks)
    prepared = make_prepared(study, rows=(64, 20, 20))
    model = build_model(study, 6, prepared.targets)
    return study, prepared, model, TaskLosses(study, prepared.targets, model.layout)


@pytest.mark.parametrize("tasks", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_tasks_share_out_the_outputs_without_gap_or_overlap(tasks):
    _, prepared, model, _ = _parts(tasks)
    columns = [list(range(own.start, own.stop)) for own in model.layout.columns]
    assert [len(own) for own in columns] == [target.outputs for target in prepared.targets]
    assert sorted(chain.from_iterable(columns)) == list(range(model.layout.width))
    assert model(prepared.train.features).shape == (64, model.layout.width)


def test_heads_of_one_kind_stand_side_by_side():
    _, prepared, model, _ = _parts(MIXED)
    places = zip(model.layout.columns, prepared.targets, strict=True)
    kinds = [target.kind for _, target in sorted(places, key=lambda place: place[0].start)]
    assert sum(before != after for before, after in pairwise(kinds)) == 2


@pytest.mark.parametrize("tasks", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_stacked_heads_learn_as_separate_heads_do(tasks):
    study, prepared, model, losses = _parts(tasks)
    data = prepared.train
    representation = torch.randn(64, model.sharing.outputs, requires_grad=True)
    losses(model.heads(representation), data.targets, data.mask).sum().backward()

    references = {
        "mse": nn.MSELoss(reduction="none"),
        "mae": nn.L1Loss(reduction="none"),
        "huber": nn.HuberLoss(reduction="none"),
    }
    again = representation.detach().clone().requires_grad_()
    for task, (name, settings) in enumerate(study.tasks.items()):
        own = model.layout.columns[task]
        head = nn.Linear(model.sharing.outputs, own.stop - own.start)
        head.weight.data.copy_(model.heads.linear.weight[own])
        head.bias.data.copy_(model.heads.linear.bias[own])
        rows = data.mask[:, task]
        outputs, labels = head(again[rows]), data.targets[rows, task]
        if settings.kind == "multiclass":
            loss = nn.functional.cross_entropy(outputs, labels.long(), reduction="sum")
        elif settings.kind == "binary":
            loss = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction="sum")
        else:
            loss = references[settings.loss](outputs[:, 0], labels).sum()
        loss.backward()
        torch.testing.assert_close(model.heads.linear.weight.grad[own], head.weight.grad, msg=name)
        torch.testing.assert_close(model.heads.linear.bias.grad[own], head.bias.grad, msg=name)
        sums = losses(model.heads(representation), data.targets, data.mask)
        torch.testing.assert_close(sums[task], loss.detach(), msg=name)
    torch.testing.assert_close(representation.grad, again.grad)


def test_a_tasks_loss_never_reaches_anothers_head():
    study, prepared, model, losses = _parts(MIXED)
    data = prepared.train
    for task in range(len(study.tasks)):
        model.zero_grad()
        losses(model(data.features), data.targets, data.mask)[task].backward()
        own = model.layout.columns[task]
        gradient = model.heads.linear.weight.grad
        others = [row for row in range(model.layout.width) if not own.start <= row < own.stop]
        assert (gradient[others] == 0).all()
        assert (gradient[own].abs().sum(1) > 0).all()


@pytest.mark.parametrize("tasks", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_a_masked_label_never_changes_a_loss_or_a_gradient(tasks):
    study, prepared, model, losses = _parts(tasks)
    data = prepared.train
    assert not data.mask.all()

    def gradients(labels):
        model.zero_grad()
        sums = losses(model(data.features), labels, data.mask)
        sums.sum().backward()
        return [sums.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    generator = torch.Generator().manual_seed(0)
    for high in (2, 3):
        other = torch.randint(0, high, data.targets.shape, generator=generator).float()
        is_class = torch.tensor([task.kind != "regression" for task in study.tasks.values()])
        other = torch.where(is_class, other, other * 1e4)
        altered = torch.where(data.mask, data.targets, other)
        assert not torch.equal(altered, data.targets)
        for before, after in zip(gradients(data.targets), gradients(altered), strict=True):
            assert torch.equal(before, after)


def test_the_studys_seed_decides_the_weights_and_leaves_other_randomness_alone():
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    weights = [build_model(make_study({"seed": seed}), 6, make_prepared(make_study()).targets) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), undisturbed)
    first, same, other = (nn.utils.parameters_to_vector(model.parameters()) for model in weights)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_stacked_heads_start_as_separate_ones_would():
    targets = [Target(str(task), "regression", str(task)) for task in range(200)]
    heads = StackedHeads(64, HeadLayout.of(targets))
    bound = 1 / 64**0.5  # of nn.Linear(64, 1)
    assert heads.linear.weight.abs().max() <= bound
    assert heads.linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
