"""Two workers see and do what one does: real processes, gloo, and no Ray."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from helpers_training import make_prepared, make_study
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from polyshot.training.loop import TrainingRun
from polyshot.training.world import World

ROWS = torch.arange(101 * 2).reshape(101, 2)
VALUES = {"training.epochs": 4, "training.clip_norm": 0.5, "training.schedule.warmup": 0.3}
NORMALISED = {"training.epochs": 2, "model.encoder.normalisation": "batch"}
MULTILABEL = {
    "price": {"kind": "regression"},
    "tags": {"kind": "multilabel", "target": ["new", "old"]},
    "sold": {"kind": "binary"},
}


def _train(values: dict, world: World, tasks: dict | None = None, shard: bool = False) -> dict:
    """A run with its batches recorded: the first feature of a row is its number."""
    study = make_study(values, tasks)
    prepared = make_prepared(study)
    prepared.train.features[:, 0] = torch.arange(203) / 203
    batches: list[list[int]] = []

    def wrap(model):
        model.register_forward_pre_hook(
            lambda module, given: (
                batches.append((given[0][:, 0] * 203).round().int().tolist()) if module.training else None
            )
        )
        if world.size == 1 or shard:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False)

    run = TrainingRun(study, prepared, world=world, wrap=wrap, shard=shard)
    if shard:  # interrupted, and taken up again
        first, run = run, TrainingRun(study, prepared, world=world, wrap=wrap, shard=True)
        parts = list(itertools.islice(first.epochs(), 2))
        run.load_state_dict(first.state_dict())
        assert len(parts) == len(run.history)
    list(run.epochs())
    state = run.state_dict()
    return {
        "history": [epoch.metrics for epoch in run.history],
        "batches": batches,
        "validation": run.evaluate(prepared.validation),
        "model": state["model"],
        "kept": state["best_weights"],
        "own": sum(map(_own_part, run.model.state_dict().values())),
    }


def _own_part(parameter: torch.Tensor) -> int:
    """How many numbers of a parameter this worker has."""
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    world = World(rank, 2)
    share = world.share(ROWS)
    averaged = [torch.tensor([1.0 + 2 * rank]), torch.tensor([rank])]
    world.average(averaged)
    given = torch.tensor([1.0 + rank], requires_grad=True)
    found = {
        "share": share,
        "gathered": world.gather(share, len(ROWS)),
        "gathered one": world.gather(world.share(ROWS[:1]), 1),
        "sum": world.sum(given),
        "given": given.detach(),
        "averaged": averaged,
        "from first": world.from_first(torch.tensor([5.0 + rank])),
        "run": _train(VALUES, world),
        "normalised": _train(NORMALISED, world),
        "sharded": _train(VALUES, world, shard=True),
        "multilabel": _train(VALUES | {"training.sampling.kind": "joint"}, world, MULTILABEL),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> list[dict]:
    """What each of two workers found."""
    folder = tmp_path_factory.mktemp("workers")
    sys.path.insert(0, str(Path(__file__).parent))  # for the processes that are started
    multiprocessing.spawn(_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict:
    return _train(VALUES, World())


def test_shares_are_all_rows_in_order_and_gathered_again(workers):
    shares = [found["share"] for found in workers]
    assert [len(share) for share in shares] == [51, 50]
    assert torch.equal(torch.cat(shares), ROWS)
    for found in workers:
        assert torch.equal(found["gathered"], ROWS)
        assert torch.equal(found["gathered one"], ROWS[:1])  # the second worker's share is empty


def test_sums_averages_and_the_first_workers_word(workers):
    for rank, found in enumerate(workers):
        assert found["sum"].item() == 3.0
        assert found["given"].item() == 1.0 + rank  # is not changed
        assert found["averaged"][0].item() == 2.0
        assert found["averaged"][1].item() == rank  # counts are not averaged
        assert found["from first"].item() == 5.0


def test_alone_every_operation_is_the_identity():
    world, tensor = World(), torch.tensor([1.0, 2.0])
    world.average([tensor])
    for result in (world.share(tensor), world.sum(tensor), world.gather(tensor, 2), world.from_first(tensor)):
        assert torch.equal(result, torch.tensor([1.0, 2.0]))


def test_the_global_batches_are_the_same_for_one_and_two_workers(workers, alone):
    first, second = (found["run"]["batches"] for found in workers)
    assert len(alone["batches"]) == 4 * 7
    assert [one + other for one, other in zip(first, second, strict=True)] == alone["batches"]


def test_losses_and_metrics_are_the_same_for_one_and_two_workers(workers, alone):
    for found in workers:
        for mine, theirs in zip(found["run"]["history"], alone["history"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert found["run"]["validation"] == pytest.approx(alone["validation"], rel=1e-4)


def test_a_multilabel_task_has_the_same_losses_and_metrics_for_one_and_two_workers(workers):
    alone = _train(VALUES | {"training.sampling.kind": "joint"}, World(), MULTILABEL)
    assert 0.6 < alone["validation"]["tags/roc_auc"] < 1
    for found in workers:
        for mine, theirs in zip(found["multilabel"]["history"], alone["history"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert found["multilabel"]["validation"] == pytest.approx(alone["validation"], rel=1e-4)


def test_workers_that_each_have_a_part_of_the_parameters_train_as_one_does(workers, alone):
    parts = [found["sharded"]["own"] for found in workers]
    assert sum(parts) == alone["own"] and max(parts) < 0.6 * alone["own"]
    for found in workers:
        for mine, theirs in zip(found["sharded"]["history"], alone["history"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        for name, value in alone["model"].items():
            torch.testing.assert_close(found["sharded"]["model"][name], value, rtol=1e-3, atol=1e-5)


def test_workers_agree_to_the_last_bit(workers):
    first, second = workers
    for run in ("run", "normalised", "sharded", "multilabel"):
        assert first[run]["history"] == second[run]["history"]
        assert first[run]["validation"] == second[run]["validation"]
        for name, value in first[run]["model"].items():
            assert torch.equal(value, second[run]["model"][name]), name


def test_two_workers_compute_the_metrics_that_one_does_for_the_same_predictions(workers):
    """Of weights that two workers trained, evaluated by both together and by one alone."""
    study = make_study(VALUES)
    prepared = make_prepared(study)
    run = TrainingRun(study, prepared)
    list(run.epochs())
    both = workers[0]["run"]
    run.best_weights = both["kept"]
    assert run.evaluate(prepared.validation) == pytest.approx(both["validation"], rel=1e-6)
