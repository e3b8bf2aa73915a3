"""Batches of the tasks: who is drawn how often, from which rows, and that it can be taken up again."""

from __future__ import annotations

import pytest
import torch

from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.training.sampling import Batch, RowSampler, Sampler, apportioned, build_sampler

SIZES = {"big": 4000, "middle": 90, "small": 4}


def labels() -> torch.Tensor:
    """[N, 3]: rows with one label each, as when tasks have tables of their own, and ten rows that have two."""
    mask = torch.zeros(sum(SIZES.values()), len(SIZES), dtype=torch.bool)
    start = 0
    for task, size in enumerate(SIZES.values()):
        mask[start : start + size, task] = True
        start += size
    return mask


def sampler_of(kind: str, mask: torch.Tensor | None = None, **settings: object) -> Sampler:
    tasks = {name: {"kind": "regression"} | dict(settings.pop(name, {})) for name in SIZES}  # type: ignore[call-overload]
    training = {"batch_size": 32, "sampling": {"kind": kind} | settings}
    study = Study.from_dict({"name": "s", "data": {"source": "t.csv"}, "tasks": tasks, "training": training})
    return build_sampler(study, labels() if mask is None else mask)


def drawn(batch: Batch, mask: torch.Tensor) -> list[int]:
    """How many labels of each task count in a batch."""
    return (mask[batch.rows] & batch.counts).sum(0).tolist()


OF_TASKS = ["proportional", "temperature", "uniform", "weighted", "round_robin", "dynamic"]


@pytest.mark.parametrize("kind", ["rows", "joint", *OF_TASKS])
def test_an_epoch_is_a_function_of_seed_and_number(kind):
    one, other = (
        [[batch.rows.tolist() for batch in sampler.epoch(number)] for number in (1, 2)]
        for sampler in (sampler_of(kind), sampler_of(kind))
    )
    assert one == other
    assert one[0] != one[1]
    assert len(one[0]) == len(one[1]) == sampler_of(kind).steps


def test_rows_are_all_seen_once_an_epoch():
    batches = list(RowSampler(0, 100, 32, torch.device("cpu")).epoch(1))
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(100))
    assert {len(batch.rows) for batch in batches} == {25}


def test_passes_over_the_rows_may_be_cut_into_epochs():
    whole, cut = (RowSampler(0, 100, 32, torch.device("cpu"), steps) for steps in (None, 3))
    passes = [batch.rows.tolist() for number in (1, 2, 3) for batch in whole.epoch(number)]
    assert [batch.rows.tolist() for number in (1, 2, 3, 4) for batch in cut.epoch(number)] == passes
    longer = RowSampler(0, 100, 32, torch.device("cpu"), 9)
    assert [batch.rows.tolist() for batch in longer.epoch(1)] == passes[:9]


@pytest.mark.parametrize("kind", OF_TASKS)
def test_a_batch_is_of_one_task_and_every_task_has_its_turn(kind):
    mask = labels()
    mask[:10, 1] = True  # rows of the big task that have a label of the middle one as well
    sampler = sampler_of(kind, mask)
    seen = torch.zeros(3)
    for batch in sampler.epoch(1):
        counts = drawn(batch, mask)
        assert sum(count > 0 for count in counts) == 1
        assert max(counts) == len(batch.rows)
        seen += torch.tensor(counts)
    assert (seen > 0).all()


def batches_of_tasks(sampler: Sampler, number: int = 1) -> list[int]:
    mask = labels()
    counts = [drawn(batch, mask) for batch in sampler.epoch(number)]
    return [sum(count[task] > 0 for count in counts) for task in range(3)]


def test_shares_follow_size_temperature_and_weights():
    steps = 125 + 3 + 1  # 4000 and 90 rows in batches of 32, 4 rows in one
    assert batches_of_tasks(sampler_of("proportional")) == pytest.approx([125, 3, 1], abs=1)
    assert batches_of_tasks(sampler_of("uniform")) == [43, 43, 43]
    assert batches_of_tasks(sampler_of("temperature", temperature=1e6)) == [43, 43, 43]
    square_roots = torch.tensor([125, 90 / 32, 1]).sqrt()
    expected = (square_roots / square_roots.sum() * steps).tolist()
    assert batches_of_tasks(sampler_of("temperature", temperature=2)) == pytest.approx(expected, abs=1)
    weights = {"big": {"sampling_weight": 1}, "middle": {"sampling_weight": 2}, "small": {"sampling_weight": 3}}
    assert batches_of_tasks(sampler_of("weighted", **weights)) == pytest.approx(
        [steps / 6, steps / 3, steps / 2], abs=1
    )


def test_round_robin_takes_the_tasks_in_turn_over_the_end_of_an_epoch():
    sampler, mask = sampler_of("round_robin"), labels()
    order = [drawn(batch, mask).index(len(batch.rows)) for number in (1, 2) for batch in sampler.epoch(number)]
    assert order == [step % 3 for step in range(len(order))]


def test_dynamic_sampling_prefers_tasks_that_have_learnt_least_and_goes_on_from_its_state():
    sampler = sampler_of("dynamic")
    assert batches_of_tasks(sampler) == [43, 43, 43]
    sampler.end_epoch(torch.tensor([1.0, 10.0, 4.0]))
    sampler.end_epoch(torch.tensor([0.25, 10.0, 1.0]))
    counts = batches_of_tasks(sampler, 3)
    assert counts == pytest.approx([129 / 6, 129 * 4 / 6, 129 / 6], abs=1)
    taken_up = sampler_of("dynamic")
    taken_up.load_state_dict(sampler.state_dict())
    assert [b.rows.tolist() for b in taken_up.epoch(3)] == [b.rows.tolist() for b in sampler.epoch(3)]


def test_joint_batches_have_each_tasks_own_number_of_rows_on_every_worker():
    mask = labels()
    sampler = sampler_of("joint", mask, big={"batch_size": 64}, middle={"batch_size": 16})
    assert sampler.steps == 63  # 4000 rows in batches of 64
    seen = []
    for batch in sampler.epoch(1):
        assert drawn(batch, mask) == [64, 16, 4]  # the small task has four rows in all
        for part in batch.rows.tensor_split(2):
            assert mask[part].any(0).all()
        seen.append(batch.rows)
    times = torch.cat(seen).bincount(minlength=len(mask))
    assert set(times[:4000].tolist()) == {1, 2}  # 63 · 64 = 4032 rows
    assert set(times[4090:].tolist()) == {63}
    assert times[4000:4090].max() - times[4000:4090].min() <= 1


def test_apportioning_gives_everyone_one_and_loses_none():
    assert apportioned(torch.tensor([1e9, 1.0, 1.0]), 10).tolist() == [8, 1, 1]
    assert apportioned(torch.tensor([1.0, 1.0, 2.0]), 8).tolist() == [2, 2, 4]
    random = torch.Generator().manual_seed(derive_seed(0, "test"))
    for _ in range(50):
        shares = torch.rand(7, generator=random) + 1e-3
        counts = apportioned(shares, 100)
        assert counts.sum() == 100
        assert counts.min() >= 1
        exact = shares / shares.sum() * 100
        assert (counts - exact)[exact >= 1].abs().max() <= 1 + (exact < 1).sum()
