"""The meta-training loop: exact resume, workers that make no difference, stopping; and the evaluation protocol."""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_meta import learner, mlp
from torch import multiprocessing

from polyshot.errors import ResourceError, StudyError
from polyshot.meta.baselines import baselines
from polyshot.meta.episodes import Classes, Sinusoids, build_source
from polyshot.meta.evaluation import Scores, episode_batches, score
from polyshot.meta.training import MetaRun
from polyshot.study import Study
from polyshot.study.meta import ClassEpisodes
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingDivergedError
from polyshot.training.world import World


def wave_study(**values: Any) -> Study:
    return Study.from_dict(
        {
            "name": "waves",
            "model": {"encoder": {"width": 16}},
            "meta": {
                "episodes": {"kind": "sinusoids"},
                "learner": {"kind": "maml", "rate": 0.02, "steps": 2},
                "tasks_per_batch": 5,
                "iterations": 25,
                "validate_every": 10,
                "validation_tasks": 60,
                "learning_rate": 0.005,
            },
            "scale": {"device": "cpu"},
        }
    ).with_values(values)


def wave_run(world: World | None = None, **values: Any) -> MetaRun:
    study = wave_study(**values)
    return MetaRun(study, build_source(study), world=world)


def metrics(run: MetaRun) -> list[dict[str, float]]:
    return [epoch.metrics for epoch in run.history]


def test_a_run_that_was_cut_short_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = wave_run(), wave_run(), wave_run()
    list(whole.epochs())
    list(islice(first.iterations(), 13))  # between two looks at the validation tasks
    save_checkpoint(first.state_dict(), tmp_path / "checkpoint.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    list(second.epochs())
    assert metrics(second) == metrics(whole)
    assert [epoch.number for epoch in whole.history] == [1, 2, 3] and whole.iteration == 25
    for name, value in whole.best_weights().items():
        assert torch.equal(second.best_weights()[name], value)


def test_a_state_of_before_diverged_tasks_were_counted_goes_on_as_if_none_had() -> None:
    whole, first, second = wave_run(), wave_run(), wave_run()
    list(whole.epochs())
    list(islice(first.iterations(), 13))
    state = first.state_dict()
    for look in state["history"]:
        del look["metrics"]["not_finite"]
    second.load_state_dict(state)
    list(second.epochs())
    assert metrics(second) == metrics(whole)


def test_meta_training_makes_adaptation_better() -> None:
    run = wave_run(**{"meta.iterations": 400, "meta.validate_every": 200, "meta.compile": "never"})
    before = run.learner.weights()
    list(run.epochs())
    curves = [
        score(run.learner, weights, episode_batches(run.study, run.source, "test", 100), 2).metrics.mean(1)
        for weights in (before, run.best_weights())
    ]
    assert curves[1][2] < 0.9 * curves[0][2]
    assert curves[1][2] < 0.9 * curves[1][0]


FOUR = {"meta.iterations": 4, "meta.validate_every": 2}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    run = wave_run(World(rank, 2), **FOUR)
    list(islice(run.iterations(), 3))  # between two looks
    save_checkpoint(run.state_dict(), Path(folder) / f"checkpoint-{rank}.pt")
    list(run.epochs())
    torch.save({"history": metrics(run), "weights": run.weights()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what each of two workers left."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(_worker, (str(folder),), nprocs=2)
    return folder


def assert_same_run(history: list[dict[str, float]], weights: dict[str, torch.Tensor], other: MetaRun) -> None:
    for mine, theirs in zip(history, metrics(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, value in other.weights().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file")
def test_one_and_two_workers_make_the_same_updates(two_workers: Path) -> None:
    first, second = (torch.load(two_workers / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = wave_run(**FOUR)
    list(alone.epochs())
    assert first["history"] == second["history"]  # or they could disagree on whether to go on
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
    assert_same_run(first["history"], first["weights"], alone)


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file")
@pytest.mark.parametrize("rank", [0, 1])
def test_what_two_workers_began_one_can_end(two_workers: Path, rank: int) -> None:
    alone, taken_up = wave_run(**FOUR), wave_run(**FOUR)
    list(alone.epochs())
    taken_up.load_state_dict(load_checkpoint(two_workers / f"checkpoint-{rank}.pt"))
    list(taken_up.epochs())
    assert_same_run(metrics(taken_up), taken_up.weights(), alone)


def test_training_stops_when_validation_no_longer_improves() -> None:
    run = wave_run(
        **{"meta.early_stopping.patience": 2, "meta.validate_every": 1, "meta.iterations": 500},
        **{"meta.learning_rate": 1.0},
    )
    list(run.epochs())
    assert run.best is not None and run.iteration == run.best.number + 2 < 500


def test_a_run_that_diverges_stops_and_says_so() -> None:
    run = wave_run(**{"meta.learner.rate": 1e30, "meta.validate_every": 1})
    list(run.epochs())
    assert run.iteration == 1
    with pytest.raises(TrainingDivergedError, match="meta.learner.rate"):
        run.best_weights()


def test_validation_tasks_that_diverge_are_told_beside_the_mean_and_a_look_with_fewer_of_them_is_better(
    monkeypatch,
) -> None:
    looks = [[3.0, 1.0], [0.1, math.nan], [2.0, 1.5], [math.inf, math.nan], [0.2, math.inf]]
    found = iter(torch.tensor([[losses] for losses in looks]))
    run = wave_run(**{"meta.validate_every": 5})
    monkeypatch.setattr(run, "_score", lambda *_: Scores(losses := next(found), losses, 9.0))
    list(run.epochs())
    assert [look["not_finite"] for look in metrics(run)] == [0.0, 0.5, 0.0, 1.0, 0.5]
    for name in ("val/loss", "val/sinusoid/mse"):
        assert [look[name] for look in metrics(run)] == pytest.approx([2.0, 0.1, 1.75, math.nan, 0.2], nan_ok=True)
    assert [epoch.is_best for epoch in run.history] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"model.encoder.dropout": 0.1}, StudyError, "dropout"),
        ({"meta.network.kind": "cnn4"}, StudyError, "meta.network"),
        ({"meta.learner.kind": "protonet"}, StudyError, "protonet"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(values: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wave_run(**values)


def cluster_run(
    kind: str, learner: dict[str, Any] | None = None, values: dict[str, Any] | None = None, **episodes: int
) -> MetaRun:
    """Sixty classes of points around a centre each."""
    labels = np.repeat(np.arange(60), 6)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(60, 4, generator=generator)[labels] + 0.5 * torch.randn(360, 4, generator=generator)
    settings = {"kind": "classes", "source": "none:none", "ways": 3} | episodes
    own = {"meta.episodes": settings, "meta.learner": {"kind": kind} | (learner or {})}
    study = wave_study().with_values(own | (values or {}))
    return MetaRun(study, Classes(points, labels, ClassEpisodes.model_validate(settings)))


@pytest.mark.parametrize("kind", ["protonet", "ridge"])
def test_what_takes_no_steps_trains_on_more_ways_than_it_is_tested_on(kind: str) -> None:
    run, of_eight = cluster_run(kind, train_ways=8), cluster_run(kind, ways=8)
    list(run.epochs())
    list(of_eight.epochs())
    for name, value in of_eight.weights().items():
        assert torch.equal(run.weights()[name], value)
    made = {baseline.name: baseline for baseline in baselines(run.study, run.source, run, 0)}
    for tested in (run.learner, made["nearest mean on frozen features"].learner):
        assert tested.network.head.out_features == 3
    assert run.evaluate("test", 60, 0).metrics.mean() > of_eight.evaluate("test", 60, 0).metrics.mean() > 0.3


def test_what_takes_steps_has_as_many_ways_in_training_as_in_tests() -> None:
    with pytest.raises(StudyError, match=r"meta.episodes.train_ways: 'anil' .*zero_head .* protonet or ridge"):
        cluster_run("anil", train_ways=8)
    assert cluster_run("anil", train_ways=3).learner is not None


def test_a_norm_per_step_is_measured_on_tasks_of_as_many_ways_as_in_training() -> None:
    learner = {"zero_head": True, "per_step_norm": True, "steps": 2, "rate": 0.5}
    run = cluster_run("maml", learner, {"model.encoder": {"width": 16, "normalisation": "batch"}}, train_ways=8)
    list(run.epochs())
    assert any(name.endswith("running_mean") for name in run.best_weights())
    assert run.evaluate("test", 60, 2).metrics[-1].mean() > 0.4


@pytest.mark.parametrize("kind", ["maml", "first_order_maml", "anil"])
def test_what_begins_with_a_head_of_zeros_trains_on_more_ways_than_it_is_tested_on(kind: str) -> None:
    run = cluster_run(kind, {"zero_head": True, "rate": 0.5, "steps": 2}, train_ways=8)
    list(run.epochs())
    before, *_, after = run.evaluate("test", 200, 2).table("accuracy")["mean"]
    assert before == pytest.approx(1 / 3)
    assert after > 0.55


def test_more_workers_than_tasks_are_refused_before_they_start() -> None:
    with pytest.raises(ResourceError, match="5 tasks cannot be shared out to 6 workers"):
        wave_run(**{"scale.workers": 6})


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_scores_are_means_with_intervals_medians_and_the_share_that_diverged() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 100.0, math.nan]])
    table = Scores(values, values, bound=50.0).table("mse")
    assert table.loc[0, "mean"] == 2.5 and table.loc[0, "median"] == 2.0
    assert table.loc[0, "interval"] == pytest.approx(1.96 * 1.29099 / 2, rel=1e-3)
    assert table["diverged"].tolist() == [0.0, 0.5]
    # Of the tasks that have a number; the one that has none is among those that diverged.
    assert table.loc[1, "mean"] == 34.0 and table.loc[1, "median"] == 1.0
    assert table.loc[1, "interval"] == pytest.approx(1.96 * 57.1577 / 3**0.5, rel=1e-3)


def test_all_methods_are_judged_on_the_same_episodes() -> None:
    study = wave_study()
    source = build_source(study)
    twice = [list(episode_batches(study, source, "test", 60)) for _ in range(2)]
    assert [len(batch) for batch in twice[0]] == [50, 10]
    assert all(torch.equal(one.support, other.support) for one, other in zip(*twice, strict=True))
    other_split = next(episode_batches(study, source, "validation", 60))
    assert not torch.equal(other_split.support, twice[0][0].support)


def test_adapting_step_by_step_is_gradient_descent() -> None:
    made = learner("maml", mlp(inputs=1), rate=0.1, steps=1)
    episodes = next(episode_batches(wave_study(), Sinusoids(5, 5, 20), "test", 2)).to("cpu", torch.float64)
    scores = score(made, made.weights(), [episodes], 2)
    network = made.network
    for task in range(2):
        network.load_state_dict(made.weights())
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        start = {name: value.clone() for name, value in network.state_dict().items()}
        for step in range(3):
            error = (network(episodes.query[task])[:, 0] - episodes.query_labels[task]).square().mean()
            torch.testing.assert_close(scores.losses[step, task], error.detach())
            optimiser.zero_grad()
            (network(episodes.support[task])[:, 0] - episodes.support_labels[task]).square().mean().backward()
            optimiser.step()
        network.load_state_dict(start)


def test_baselines_are_what_a_plain_user_would_do() -> None:
    study = wave_study()
    source = build_source(study)
    run = MetaRun(study, source)
    list(run.epochs())
    made = {baseline.name: baseline for baseline in baselines(study, source, run, 3)}
    assert list(made) == [
        "from scratch", "pre-trained then fine-tuned", "ridge on raw inputs", "ridge on frozen features",
    ]  # fmt: skip
    (episodes,) = episode_batches(study, source, "test", 3)
    scores = {name: score(one.learner, one.weights, [episodes], one.steps) for name, one in made.items()}
    assert {name: len(one.metrics) for name, one in scores.items()} == dict(zip(made, (1, 4, 1, 1), strict=True))
    # Ridge with an intercept that is shrunk as well, by the normal equations.
    rows = torch.cat([episodes.support, torch.ones_like(episodes.support)], 2)
    fitted = torch.linalg.solve(rows.mT @ rows + torch.eye(2), rows.mT @ episodes.support_labels.unsqueeze(2))
    query = torch.cat([episodes.query, torch.ones_like(episodes.query)], 2)
    errors = ((query @ fitted)[..., 0] - episodes.query_labels).square().mean(1)
    torch.testing.assert_close(scores["ridge on raw inputs"].metrics[-1], errors)
    # Adam for 100 steps, as torch does it.
    baseline = made["from scratch"]
    network = baseline.learner.network
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        (network(episodes.support[1])[:, 0] - episodes.support_labels[1]).square().mean().backward()
        optimiser.step()
    error = (network(episodes.query[1])[:, 0] - episodes.query_labels[1]).square().mean()
    torch.testing.assert_close(scores["from scratch"].metrics[-1, 1], error.detach(), rtol=1e-2, atol=1e-3)
