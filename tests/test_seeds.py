"""`polyshot train --seeds`: each seed a run of its own, and what is reported is over seeds."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, learnable_table

import polyshot
from polyshot import Study
from polyshot.errors import StudyError
from polyshot.results import across_seeds, delta_m, t_interval


def test_the_interval_of_a_mean_is_students():
    low, high = t_interval([0.1, 0.2, 0.3]).ends
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)
    assert t_interval([0.1, 0.11, 0.12]).verdict == "helped"
    assert t_interval([0.3]).verdict == t_interval([0.1, math.nan]).verdict == "unknown"


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [t_interval(random.normal(0.05, 0.1, 4)) for _ in range(2000)]
    assert 0.935 < np.mean([i.low <= 0.05 <= i.high for i in intervals]) < 0.965


def table(read: float, math_: float, verdict: str) -> pd.DataFrame:
    rows = [
        {"split": split, "task": task, "metric": "rmse", "single_task": 1.0, "multi_task": 1 - gain}
        | {"improvement": gain, "low": gain - 1, "high": gain + 1, "verdict": verdict}
        for split in ("validation", "test")
        for task, gain in (("read", read), ("math", math_))
    ]
    return pd.DataFrame(rows)


def test_tables_of_seeds_become_means_with_intervals_beside_the_first_seeds_verdict():
    found, intervals = across_seeds([table(0.1, -0.2, "helped"), table(0.12, 0.2, "hurt"), table(0.11, 0.0, "hurt")])
    test = found[found["split"] == "test"].set_index("task")
    assert test["multi_task"].tolist() == pytest.approx([0.89, 1.0])
    assert test["improvement"].tolist() == pytest.approx([0.11, 0.0])
    assert test["verdict"].tolist() == ["helped", "within noise"]
    assert test["first_seed"].tolist() == ["helped", "helped"]
    assert tuple(test.loc["read", ["low", "high"]]) == pytest.approx(t_interval([0.1, 0.12, 0.11]).ends)
    assert intervals["test"].delta_m.ends == pytest.approx(t_interval([-0.05, 0.16, 0.055]).ends)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[polyshot.verbs.train.TrainResult], list[dict[str, int]]]:
    """Two seeds, then three of the same study; and when the files of the first ones were written, both times."""
    folder = tmp_path_factory.mktemp("seeds")
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "study.yaml").write_text(STUDY.replace("name: houses", "name: houses\nseed: 5"))
    before, results, written = Path.cwd(), [], []
    os.chdir(folder)
    try:
        study = Study.load("study.yaml")
        for seeds in (2, 3):
            results.append(polyshot.train(study, seeds=seeds))
            files = [results[0].folder / f"seed-{seed}" / "checkpoint.pt" for seed in (5, 6)]
            written.append({str(file): file.stat().st_mtime_ns for file in files})
    finally:
        os.chdir(before)
    return folder, results, written


def test_a_result_is_over_its_seeds_and_each_seed_is_told(trained):
    _, (_, result), _ = trained
    assert list(dict.fromkeys(result.seeds["seed"])) == list(dict.fromkeys(result.curves["seed"])) == [5, 6, 7]
    parts = [part.drop(columns="seed").reset_index(drop=True) for _, part in result.seeds.groupby("seed")]
    assert len({part["multi_task"].iloc[0] for part in parts}) == 3
    assert len({part["single_task"].iloc[0] for part in parts}) == 3  # each has baselines of its own
    expected, _ = across_seeds(parts)
    pd.testing.assert_frame_equal(result.metrics, expected)
    each = [delta_m(part, "test") for part in parts]
    assert result.improvement == pytest.approx(np.mean(each))
    assert result.interval == pytest.approx(t_interval(each).ends)
    assert {"price", "sold"} <= set(result.model.predict(learnable_table()))


def test_a_seed_that_has_ended_is_not_trained_again_when_more_are_asked_for(trained):
    _, (first, second), (before, after) = trained
    assert first.folder == second.folder
    assert before == after
    pd.testing.assert_frame_equal(second.seeds[second.seeds["seed"] < 7], first.seeds)


def test_in_mlflow_each_seed_is_a_child_with_its_baselines_beneath(trained):
    folder, (_, result), _ = trained
    from polyshot.tracking.query import runs_table

    runs = runs_table(Study.load(folder / "study.yaml").with_values({"storage": str(folder / "polyshot-runs")}))
    assert sorted(runs["run"]) == sorted(
        ["train-1", *(f"seed-{s}" for s in (5, 6, 7)), *["baseline-price", "baseline-sold"] * 3]
    )
    assert set(runs["status"]) == {"FINISHED"}
    parent = runs.set_index("run").loc["train-1"]
    assert parent["test/improvement"] == pytest.approx(result.improvement)
    assert parent["test/improvement_low"] == pytest.approx(result.interval[0])


def test_fewer_seeds_than_one_are_refused(houses):
    with pytest.raises(StudyError, match="--seeds: must be 1 or more, got 0"):
        polyshot.train(Study.load(houses), seeds=0)
