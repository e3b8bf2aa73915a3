"""Packed runs: trained together, each gives what it gives alone; what cannot be packed is told."""

from __future__ import annotations

import pytest
import torch
from helpers_training import make_prepared, make_study

from polyshot.training.loop import TrainingRun
from polyshot.training.packed import PackedRuns, shape, train_packed, why_alone

DIFFERENT = [
    {"training.optimiser.learning_rate": 3e-3},
    {"training.optimiser.weight_decay": 0.1, "tasks.price.weight": 5.0, "training.clip_norm": 0.1},
    {"training.schedule.kind": "constant", "tasks.sold.learning_rate_factor": 0.2},
    {"training.epochs": 3, "training.schedule.warmup": 0.2},
]


def runs(*values: dict, common: dict | None = None) -> list[TrainingRun]:
    base = make_study(common)
    prepared = make_prepared(base)
    return [TrainingRun(base.with_values(own), prepared.for_training()) for own in values]


def ended_alone(run: TrainingRun) -> TrainingRun:
    for _ in run.epochs():
        pass
    return run


def assert_same(packed: TrainingRun, alone: TrainingRun) -> None:
    assert len(packed.history) == len(alone.history)
    for mine, expected in zip(packed.history, alone.history, strict=True):
        assert mine.metrics == pytest.approx(expected.metrics, rel=1e-6, abs=1e-6)
        assert mine.is_best == expected.is_best
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(packed.model.state_dict()[name], weight, rtol=1e-6, atol=1e-6)
    for name, weight in alone.best_weights.items():
        torch.testing.assert_close(packed.best_weights[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"training.optimiser.kind": "sgd"},
        {"model.encoder.normalisation": "layer", "model.encoder.activation": "gelu", "model.encoder.depth": 3},
    ],
)
def test_runs_of_one_shape_give_together_what_each_gives_alone(common):
    packed, alone = runs(*DIFFERENT, common=common), runs(*DIFFERENT, common=common)
    assert len({shape(run.study) for run in packed}) == 1
    train_packed(packed)
    for mine, expected in zip(packed, alone, strict=True):
        assert_same(mine, ended_alone(expected))


def test_runs_of_several_seeds_have_batches_and_weights_of_their_own():
    seeds = [{"seed": seed} for seed in (1, 2, 3)]
    packed, alone = runs(*seeds), runs(*seeds)
    train_packed(packed)
    for mine, expected in zip(packed, alone, strict=True):
        assert_same(mine, ended_alone(expected))
    assert packed[0].history[-1].metrics["val/loss"] != packed[1].history[-1].metrics["val/loss"]


def test_tasks_alone_in_a_pack_of_seeds_give_what_they_give_alone():
    base = make_study()
    prepared, alone = make_prepared(base).for_task("region"), base.single_task("region")
    made = [[TrainingRun(alone.with_values({"seed": seed}), prepared) for seed in (1, 2)] for _ in range(2)]
    train_packed(made[0])
    for mine, expected in zip(*made, strict=True):
        assert_same(mine, ended_alone(expected))


def test_a_run_that_leaves_the_pack_goes_on_alone_from_its_checkpoint_and_the_others_do_not_notice():
    packed, alone = runs(*DIFFERENT[:3]), runs(*DIFFERENT[:3])
    pack = PackedRuns(packed)
    pack.epoch()
    pack.epoch()
    pack.keep(packed[1:])
    state = packed[0].state_dict()
    while not packed[1].finished:
        pack.epoch()
    (resumed,) = runs(DIFFERENT[0])
    resumed.load_state_dict(state)
    assert_same(ended_alone(resumed), ended_alone(alone[0]))
    for mine, expected in zip(packed[1:], alone[1:], strict=True):
        assert_same(mine, ended_alone(expected))


def test_a_run_that_diverges_spares_the_others():
    values = [{}, {"training.optimiser": {"kind": "sgd", "learning_rate": 1e30}}, {"tasks.price.weight": 1.0}]
    base = {"training.optimiser.kind": "sgd"}
    packed, alone = runs(*values, common=base), runs(*values, common=base)
    train_packed(packed)
    assert len(packed[1].history) < 6
    for place in (0, 2):
        assert_same(packed[place], ended_alone(alone[place]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, None),
        ({"model.encoder.dropout": 0.1}, "dropout"),
        ({"model.encoder.normalisation": "batch"}, "batch normalisation"),
        ({"model.sharing.kind": "cross_stitch"}, "cross_stitch"),
        ({"balance.kind": "uncertainty"}, "uncertainty"),
        ({"training.sampling.kind": "joint"}, "joint"),
        ({"model.encoder.kind": "helpers_training:LinearEncoder"}, "custom"),
        ({"training.precision": "bfloat16"}, "precision"),
    ],
)
def test_what_cannot_be_packed_is_told_and_trained_alone(values, words):
    study = make_study(values)
    assert (why_alone(study) or "") == (words or "") or words in why_alone(study)


def test_other_shapes_are_other_packs():
    base = make_study()
    for values in ({"model.encoder.width": 8}, {"training.batch_size": 16}, {"tasks.price.loss": "mae"}):
        assert shape(base.with_values(values)) != shape(base)
    same = {"seed": 5, "tasks.price.weight": 0.1, "training.optimiser.learning_rate": 0.5, "training.epochs": 2}
    assert shape(base.with_values(same)) == shape(base)
    values = [{}, {"model.encoder.width": 8}, {"model.encoder.dropout": 0.3}, {"seed": 2}]
    mixed, alone = runs(*values), runs(*values)
    train_packed(mixed)
    for mine, expected in zip(mixed, alone, strict=True):
        assert_same(mine, ended_alone(expected))
