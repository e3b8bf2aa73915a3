"""The training loop: what it learns, keeps, resumes and refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers_training import make_prepared, make_study
from torch import nn

from polyshot.errors import ResourceError, StudyError
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingDivergedError, TrainingRun, choose_device, learning_rate

HARD_TO_RESUME = {
    "model.encoder.dropout": 0.3,
    "model.encoder.normalisation": "batch",
    "training.schedule.kind": "cosine",
    "training.schedule.warmup": 0.2,
    "training.clip_norm": 1.0,
}


def _trained(values=None, tasks=None, prepared=None):
    study = make_study(values, tasks)
    run = TrainingRun(study, prepared or make_prepared(study))
    for _ in run.epochs():
        pass
    return run


def _figures(run):
    """All that an epoch says but how long it took."""
    return [replace(epoch, seconds=0.0) for epoch in run.history]


# --- learning --------------------------------------------------------------------------------------------------------


def test_it_learns_what_there_is_to_learn():
    study = make_study({"training.epochs": 60, "model.encoder.width": 64, "training.schedule.kind": "constant"})
    prepared = make_prepared(study, noise=0.01, missing=0.1)
    run = TrainingRun(study, prepared)
    losses = [epoch.metrics["train/loss"] for epoch in run.epochs()]
    assert losses[-1] < 0.1 * losses[0]
    metrics = run.evaluate(prepared.test)
    assert metrics["sold/roc_auc"] > 0.9
    assert metrics["price/rmse"] < 5  # half the labels' scale
    assert metrics["region/accuracy"] > 0.7


@pytest.mark.parametrize("values", [{}, {"balance.kind": "dwa"}, {"model.sharing.kind": "soft"}], ids=str)
def test_a_batch_in_parts_is_the_same_update(values):
    whole, parts = (_trained(values | {"training.epochs": 3, "training.accumulate": count}) for count in (1, 5))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
    losses = [[epoch.metrics["train/loss"] for epoch in run.history] for run in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_balancers_that_need_a_whole_batch_are_not_given_parts():
    for kind in ("stch", "cagrad"):
        with pytest.raises(StudyError, match=r"training\.accumulate.*needs the losses of a whole batch"):
            make_study({"balance.kind": kind, "training.accumulate": 2})


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_one_step_is_the_optimisers_on_the_balanced_mean_loss(optimiser):
    """Of one batch with all rows, by autograd on the losses as they are defined."""
    values = {"training.epochs": 1, "training.batch_size": 1000, "training.schedule.kind": "constant"}
    study = make_study(values | {"training.optimiser.kind": optimiser, "training.optimiser.learning_rate": 0.01})
    prepared = make_prepared(study)
    run, reference = TrainingRun(study, prepared), TrainingRun(study, prepared).model
    data = prepared.train
    outputs = reference(data.features)
    price, sold, region = (outputs[:, own] for own in reference.layout.columns)
    has_price, has_sold, has_region = data.mask.T
    losses = [
        nn.functional.mse_loss(price[has_price, 0], data.targets[has_price, 0]),
        nn.functional.binary_cross_entropy_with_logits(sold[has_sold, 0], data.targets[has_sold, 1]),
        nn.functional.cross_entropy(region[has_region], data.targets[has_region, 2].long()),
    ]
    loss = 0.5 * losses[0] + 0.25 * losses[1] + 0.25 * losses[2]
    loss.backward()
    step = (
        torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=1e-4)
        if optimiser == "adamw"
        else torch.optim.SGD(reference.parameters(), lr=0.01, weight_decay=1e-4, momentum=0.9)
    )
    step.step()
    (epoch,) = run.epochs()
    assert epoch.metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    for mine, other in zip(run.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_every_row_is_trained_on_once_an_epoch_in_another_order_each_time():
    study = make_study({"training.epochs": 2})
    prepared = make_prepared(study)
    prepared.train.features[:, 0] = torch.arange(203)
    run, seen = TrainingRun(study, prepared), []
    run.model.register_forward_pre_hook(
        lambda model, given: seen.append(given[0][:, 0].int().tolist()) if model.training else None
    )
    list(run.epochs())
    batches_of_an_epoch = math.ceil(203 / 32)
    orders = [sum(seen[:batches_of_an_epoch], []), sum(seen[batches_of_an_epoch:], [])]  # noqa: RUF017
    assert [sorted(order) for order in orders] == [list(range(203))] * 2
    assert orders[0] != orders[1]
    assert {len(batch) for batch in seen} == {29}


def test_labels_that_are_missing_change_nothing_in_training_or_validation():
    study = make_study(HARD_TO_RESUME)
    prepared = make_prepared(study, missing=0.4)

    def altered(examples):
        return replace(examples, targets=torch.where(examples.mask, examples.targets, torch.ones(())))

    other = replace(prepared, train=altered(prepared.train), validation=altered(prepared.validation))
    assert not torch.equal(other.train.targets, prepared.train.targets)
    assert _figures(_trained(HARD_TO_RESUME, prepared=prepared)) == _figures(_trained(HARD_TO_RESUME, prepared=other))


def test_a_task_without_labels_in_a_batch_does_not_spoil_it():
    study = make_study({"training.batch_size": 4})
    prepared = make_prepared(study, missing=0.8)
    assert all(math.isfinite(epoch.metrics["train/loss"]) for epoch in TrainingRun(study, prepared).epochs())


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, same, other = (_trained(HARD_TO_RESUME | {"seed": seed}) for seed in (1, 1, 2))
    assert _figures(first) == _figures(same)
    assert _figures(first) != _figures(other)


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(3)
    undisturbed = torch.rand(2)
    torch.manual_seed(3)
    _trained(HARD_TO_RESUME)
    assert torch.equal(torch.rand(2), undisturbed)


def test_clipping_bounds_the_step():
    def distance(clip_norm):
        values = {"training.optimiser.kind": "sgd", "training.optimiser.learning_rate": 0.1, "training.epochs": 1}
        values |= {"training.batch_size": 1000, "training.clip_norm": clip_norm, "training.schedule.kind": "constant"}
        study = make_study(values | {"training.optimiser.weight_decay": 0.0})
        run = TrainingRun(study, make_prepared(study))
        before = nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
        list(run.epochs())
        return (nn.utils.parameters_to_vector(run.model.parameters()) - before).norm().item()

    assert distance(None) > 0.1 * 0.01
    assert distance(0.01) == pytest.approx(0.1 * 0.01, rel=1e-3)


# --- the epoch that is kept ------------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept_not_the_last():
    values = {"training.epochs": 40, "training.optimiser.learning_rate": 0.03, "model.encoder.width": 128}
    study = make_study(values | {"training.schedule.kind": "constant"})
    prepared = make_prepared(study, rows=(40, 101, 60), noise=1.0)  # little data, much noise: it overfits
    run = TrainingRun(study, prepared)
    losses = [epoch.metrics["val/loss"] for epoch in run.epochs()]
    best = losses.index(min(losses)) + 1
    assert run.best.number == best < 40
    assert [epoch.number for epoch in run.history if epoch.is_best][-1] == best
    kept = run.evaluate(prepared.validation)
    for name, value in run.best.metrics.items():
        if name.startswith("val/") and name != "val/loss":
            assert kept[name.removeprefix("val/")] == value
    assert kept["price/rmse"] != run.history[-1].metrics["val/price/rmse"]


@pytest.mark.parametrize(("monitor", "best"), [("price/mae", min), ("sold/roc_auc", max)])
def test_a_task_s_metric_decides_which_epoch_is_kept_where_the_study_says_so(monitor, best):
    values = {"training.epochs": 40, "training.optimiser.learning_rate": 0.03, "model.encoder.width": 128}
    study = make_study(values | {"training.schedule.kind": "constant", "training.monitor": monitor})
    prepared = make_prepared(study, rows=(40, 101, 60), noise=1.0)
    run = TrainingRun(study, prepared)
    found, losses = zip(
        *((each.metrics[f"val/{monitor}"], each.metrics["val/loss"]) for each in run.epochs()), strict=True
    )
    assert run.best.number == found.index(best(found)) + 1 != losses.index(min(losses)) + 1
    assert run.evaluate(prepared.validation)[monitor] == best(found)


def test_where_the_labels_do_not_define_the_metric_the_loss_decides():
    study = make_study({"training.monitor": "sold/roc_auc"})
    prepared = make_prepared(study)
    prepared.validation.targets[:, 1] = 1.0  # one class: its curve is not defined
    run = TrainingRun(study, prepared)
    losses = [epoch.metrics["val/loss"] for epoch in run.epochs()]
    assert all(math.isnan(epoch.metrics["val/sold/roc_auc"]) for epoch in run.history)
    assert run.best.number == losses.index(min(losses)) + 1


def test_early_stopping_waits_its_patience_and_no_longer():
    values = {"training.epochs": 100, "training.optimiser.learning_rate": 0.03, "model.encoder.width": 128}
    study = make_study(values | {"training.early_stopping": {"patience": 4}})
    run = TrainingRun(study, make_prepared(study, rows=(40, 101, 60), noise=1.0))
    epochs = list(run.epochs())
    assert run.finished
    assert epochs[-1].number == run.best.number + 4 < 100


def test_a_run_that_diverges_ends_and_says_what_to_change():
    values = {"training.optimiser.kind": "sgd", "training.optimiser.learning_rate": 1e20, "training.epochs": 50}
    study = make_study(values)
    prepared = make_prepared(study)
    run = TrainingRun(study, prepared)
    epochs = list(run.epochs())
    assert len(epochs) <= 2
    with pytest.raises(TrainingDivergedError) as caught:
        run.evaluate(prepared.test)
    assert "training.optimiser.learning_rate (now 1e+20)" in str(caught.value)


def test_a_run_that_diverges_late_keeps_its_best_epoch():
    study = make_study({"training.epochs": 6})
    prepared = make_prepared(study)
    run = TrainingRun(study, prepared)
    for epoch in run.epochs():
        if epoch.number == 3:
            with torch.no_grad():
                run.model.heads.linear.bias.fill_(math.nan)
    assert len(run.history) == 4
    assert run.best.number <= 3
    assert all(map(math.isfinite, run.evaluate(prepared.test).values()))


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("interrupted_after", [1, 4])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, optimiser, interrupted_after):
    values = HARD_TO_RESUME | {"training.optimiser.kind": optimiser, "training.optimiser.learning_rate": 0.02}
    study = make_study(values)
    prepared = make_prepared(study)
    uninterrupted = _trained(values, prepared=prepared)

    run = TrainingRun(study, prepared)
    for epoch in run.epochs():
        if epoch.number == interrupted_after:
            break
    save_checkpoint(run.state_dict(), tmp_path / "checkpoint.pt")
    torch.manual_seed(99)  # whatever the new process has done before
    resumed = TrainingRun(study, prepared)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    new = [epoch.number for epoch in resumed.epochs()]

    assert new == list(range(interrupted_after + 1, 7))
    assert _figures(resumed) == _figures(uninterrupted)
    assert resumed.best.number == uninterrupted.best.number
    ours, theirs = resumed.model.state_dict(), uninterrupted.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.evaluate(prepared.test) == uninterrupted.evaluate(prepared.test)


def test_a_finished_run_that_is_resumed_is_finished(tmp_path):
    run = _trained()
    save_checkpoint(run.state_dict(), tmp_path / "checkpoint.pt")
    resumed = TrainingRun(run.study, make_prepared(run.study))
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert resumed.finished
    assert list(resumed.epochs()) == []


# --- the learning rate -----------------------------------------------------------------------------------------------


def _rates(steps, **schedule):
    study = make_study({f"training.schedule.{key}": value for key, value in schedule.items()})
    return [learning_rate(study, step, steps) / 1e-2 for step in range(steps)]


def test_learning_rates_of_each_schedule():
    assert _rates(4, kind="constant") == pytest.approx([1, 1, 1, 1])
    assert _rates(4, kind="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert _rates(4, kind="cosine") == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert _rates(8, kind="linear", warmup=0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    assert _rates(2, kind="constant", warmup=0.1) == pytest.approx([1, 1])


def test_the_schedule_spans_the_whole_budget():
    run = _trained({"training.epochs": 5, "training.schedule.kind": "linear"})
    steps = 7  # of 203 rows in batches of at most 32
    expected = [1e-2 * (1 - (epoch * steps - 1) / (5 * steps)) for epoch in range(1, 6)]
    assert [epoch.metrics["learning_rate"] for epoch in run.history] == pytest.approx(expected)


# --- precision, compilation, devices ---------------------------------------------------------------------------------


def test_bfloat16_learns_nearly_as_float32_does():
    exact, mixed = _trained(), _trained({"training.precision": "bfloat16"})
    assert mixed.model.heads.linear.weight.dtype == torch.float32
    losses = [run.history[-1].metrics["val/loss"] for run in (exact, mixed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_a_compiled_model_learns_as_the_plain_one_does():
    values = {"training.epochs": 2, "model.encoder.depth": 1}
    tasks = {"price": {"kind": "regression"}}
    plain, compiled = (_trained(values | {"training.compile": on}, tasks) for on in (False, True))
    assert hasattr(compiled._forward, "_orig_mod")
    for mine, other in zip(compiled.history, plain.history, strict=True):
        assert mine.metrics["train/loss"] == pytest.approx(other.metrics["train/loss"], rel=1e-4)


def test_float16_without_a_gpu_is_refused():
    study = make_study({"training.precision": "float16"})
    with pytest.raises(ResourceError) as caught:
        TrainingRun(study, make_prepared(study))
    assert str(caught.value).startswith("training.precision: float16 needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(ResourceError) as caught:
        choose_device(make_study({"scale.device": "cuda"}))
    assert str(caught.value).startswith("scale.device: 'cuda'")
    assert choose_device(make_study({"scale.device": "auto"})).type == "cpu"
