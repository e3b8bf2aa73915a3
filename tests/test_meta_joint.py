"""Multi-task training beside meta-training: one encoder, two objectives."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from polyshot.errors import StudyError
from polyshot.meta.episodes import build_source
from polyshot.meta.joint import JointTraining
from polyshot.meta.training import MetaRun
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.world import World

CPU = torch.device("cpu")


def schools() -> pd.DataFrame:
    """Scores by school, and whether a pupil passed, which is not known of all."""
    random = np.random.default_rng(0)
    school = np.repeat(np.arange(30), 12)
    hours, slopes = random.normal(5, 2, len(school)), np.repeat(random.choice([-1.0, 1.0], 30), 12)
    score = 50 + 10 * slopes * (hours - 5) + random.normal(0, 1, len(school))
    passed = pd.Series(np.where(hours > 5, "yes", "no")).where(random.random(len(school)) < 0.7)
    return pd.DataFrame({"school": school, "hours": hours, "score": score, "passed": passed})


def study(**values: Any) -> Study:
    return Study.from_dict(
        {
            "name": "schools",
            "data": {"source": "schools.csv", "group": "school", "features": ["hours"]},
            "tasks": {"score": {"kind": "regression"}, "passed": {"kind": "binary", "weight": 3}},
            "model": {"encoder": {"width": 8}},
            "training": {"batch_size": 50},
            "meta": {
                "episodes": {"support": 4, "query": 6},
                "learner": {"kind": "maml", "rate": 0.05, "steps": 1},
                "joint": {"weight": 0.5},
                "tasks_per_batch": 4,
                "iterations": 200,
                "validate_every": 50,
                "validation_tasks": 20,
                "learning_rate": 0.01,
            },
            "scale": {"device": "cpu"},
        }
    ).with_values(values)


def run(**values: Any) -> MetaRun:
    made = study(**values)
    return MetaRun(made, build_source(made, schools()))


def test_the_multi_task_loss_is_that_of_all_tasks_labels_on_the_body_and_its_heads() -> None:
    made = study(**{"training.batch_size": 10_000})  # all rows at once, drawn with repetitions
    source = build_source(made, schools())
    learner = MetaRun(made, source).learner
    joint = JointTraining(made, source, learner, CPU)
    rows = source.pooled
    generator = torch.Generator().manual_seed(0)
    heads = {name: torch.randn(value.shape, generator=generator) for name, value in joint.weights().items()}
    losses = [joint.loss(learner.weights() | heads, iteration, World()).item() for iteration in range(200)]
    outputs = F.linear(learner.network.body(rows.features), heads["joint.weight"], heads["joint.bias"])
    # Outputs stand in the order of the heads, by kind.
    score = (outputs[:, 1] - rows.targets[:, 0]).square().mean()
    known = rows.mask[:, 1]
    assert 0 < known.sum() < len(known)
    passed = F.binary_cross_entropy_with_logits(outputs[known, 0], rows.targets[known, 1])
    assert np.mean(losses) == pytest.approx((0.25 * score + 0.75 * passed).item(), rel=0.02)


def test_the_parts_of_two_workers_add_up() -> None:
    made = study()
    source = build_source(made, schools())
    learner = MetaRun(made, source).learner
    joint = JointTraining(made, source, learner, CPU)
    weights = learner.weights() | joint.weights()
    parts = [joint.loss(weights, 3, World(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(sum(parts), joint.loss(weights, 3, World()))
    assert parts[0] != parts[1]


def test_the_gradient_is_the_sum_of_both_objectives() -> None:
    whole, meta_only = run(), run(**{"meta.joint": None})
    weights = meta_only.learner.weights()
    for one in (whole, meta_only):
        list(islice(one.iterations(), 1))
    gradient, of_meta = (one._flat.grad for one in (whole, meta_only))
    leaves = {name: value.requires_grad_() for name, value in (weights | whole._joint.weights()).items()}
    whole._joint.loss(leaves, 0, World()).backward()
    expected = torch.cat([
        (torch.zeros_like(leaf) if leaf.grad is None else 0.5 * leaf.grad).flatten() for leaf in leaves.values()
    ])  # fmt: skip
    expected[: len(of_meta)] += of_meta
    torch.testing.assert_close(gradient, expected)


def test_both_objectives_get_better_and_both_losses_are_logged(tmp_path: Path) -> None:
    whole, first, second = run(), run(), run()
    list(whole.epochs())
    history = [epoch.metrics for epoch in whole.history]
    for name in ("train/loss", "train/joint_loss"):
        assert history[-1][name] < 0.9 * history[0][name]
    list(islice(first.iterations(), 70))
    save_checkpoint(first.state_dict(), tmp_path / "checkpoint.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    list(second.epochs())
    assert [epoch.metrics for epoch in second.history] == history


def test_the_learner_that_is_kept_has_no_heads_of_the_study_and_adapts_as_any_other() -> None:
    made = run(**{"meta.learner.kind": "ridge", "meta.iterations": 50})
    list(made.epochs())
    assert set(made.best_weights()) == set(made.learner.weights())
    assert made.evaluate("test", 10, 1).metrics.isfinite().all()


def test_a_task_of_several_labels_is_learnt_beside_the_others_as_the_mean_of_its_labels() -> None:
    table = schools().assign(early=[0, 1, 1, 0] * 90, late=[1, None, 0, 0] * 90)
    tasks = {"score": {"kind": "regression"}, "times": {"kind": "multilabel", "target": ["early", "late"]}}
    made = study(tasks=tasks, **{"training.batch_size": 10_000})
    source = build_source(made, table)
    joint = JointTraining(made, source, MetaRun(made, source).learner, CPU)
    heads = {name: torch.zeros_like(value) for name, value in joint.weights().items()}
    weights = MetaRun(made, source).learner.weights() | heads
    loss = np.mean([joint.loss(weights, iteration, World()).item() for iteration in range(50)])
    # Predictions by zero: the mean square of the scores, and log 2 for every label that is known.
    assert loss == pytest.approx(0.5 * source.pooled.targets[:, 0].square().mean().item() + 0.5 * np.log(2), rel=0.03)


def test_episodes_that_are_made_of_no_table_are_refused() -> None:
    made = Study.from_dict({"name": "waves", "meta": {"episodes": {"kind": "sinusoids"}, "joint": {"weight": 1.0}}})
    with pytest.raises(StudyError, match="meta.joint"):
        MetaRun(made, build_source(made))
