"""Measures of transferability are their papers' formulas, computed here in another way; features of any layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_transfer import INPUTS, table, target_study, trained_source
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from polyshot.errors import RunError, StudyError
from polyshot.study import Study
from polyshot.transfer.problem import TargetData
from polyshot.transfer.transferability.h_score import h_score
from polyshot.transfer.transferability.leep import leep
from polyshot.transfer.transferability.logme import logme
from polyshot.verbs.features import features
from polyshot.verbs.transfer import find_sources
from polyshot.verbs.transfer_sources import rank_sources


def sample(rows: int = 40, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, values that are nearly linear in them, and three classes."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(rows, width))
    values = found @ random.normal(size=width) + random.normal(size=rows)
    return found, values, np.digitize(values, [-1, 1]).astype(float)


def largest_evidence(found: np.ndarray, labels: np.ndarray) -> float:
    """The largest log-density of N(0, β⁻¹ I + α⁻¹ F Fᵀ) at the labels over α and β, per row."""

    def negative(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(len(labels)) / beta + found @ found.T / alpha
        return -multivariate_normal(np.zeros(len(labels)), covariance).logpdf(labels) / len(labels)

    return -min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0.0, 0.0], [3.0, 1.0]))


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (15, 30)], ids=["more rows", "more features"])
def test_logme_is_the_maximum_evidence(rows: int, width: int) -> None:
    found, values, classes = sample(rows, width)
    assert logme(found, values, are_classes=False) == pytest.approx(largest_evidence(found, values), abs=2e-3)
    expected = np.mean([largest_evidence(found, (classes == c).astype(float)) for c in np.unique(classes)])
    assert logme(found, classes, are_classes=True) == pytest.approx(expected, abs=2e-3)


def test_leep_is_the_sum_over_rows_and_classes() -> None:
    _, _, labels = sample()
    random = np.random.default_rng(1)
    theta = random.dirichlet(np.ones(4), len(labels))
    total = 0.0
    for i in range(len(labels)):
        inner = 0.0
        for z in range(4):
            joint = sum(theta[j, z] for j in range(len(labels)) if labels[j] == labels[i]) / len(labels)
            inner += joint / (sum(theta[:, z]) / len(labels)) * theta[i, z]
        total += np.log(inner)
    assert leep(theta, labels) == pytest.approx(total / len(labels))
    perfect = np.eye(3)[labels.astype(int)]
    assert leep(perfect, labels) == pytest.approx(0)


def test_h_score_is_the_trace_of_covariances() -> None:
    found, _, labels = sample()
    means = np.stack([found[labels == label].mean(0) for label in labels])
    expected = np.trace(np.linalg.inv(np.cov(found.T)) @ np.cov(means.T))
    assert h_score(found, labels) == pytest.approx(expected)
    twice = np.concatenate([found, found[:, :2]], 1)  # what depends on the others adds nothing
    assert h_score(twice, labels) == pytest.approx(expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a helpful and a harmful source, trained, and a target."""
    folder = tmp_path_factory.mktemp("sources")
    for name, harmful in (("helpful", False), ("harmful", True)):
        trained_source(folder, harmful=harmful, name=name)
    target_study(folder)
    return folder


def test_a_helpful_source_ranks_above_a_harmful_one(runs: Path) -> None:
    ranked = rank_sources(Study.load(runs / "target.yaml"), ["harmful", "helpful"])
    assert ranked["source"].tolist() == ["helpful", "harmful"]
    assert ranked["leep_task"].tolist() == ["sold", "sold"] and ranked["columns"].tolist() == [INPUTS, INPUTS]
    for measure in ("logme", "h_score", "leep"):
        assert ranked[measure][0] > ranked[measure][1]


def test_sources_rank_by_the_representation_that_a_transfer_would_use(runs: Path, polyshot) -> None:
    """Of a source whose tasks have an encoder each, that of `transfer.source_task`; others have no such task."""
    soft = {"name": "apart", "model.sharing.kind": "soft", "tasks.price": {"kind": "regression"}, "training.epochs": 2}
    trained_source(runs, rows=300, **soft)
    study = runs / "target.yaml"
    found = {}
    for task in ("sold", "price"):
        named = ("--set", f"transfer.source_task={task}")
        outcome = polyshot("rank-sources", study, "apart", "helpful", "--json", *named)
        assert outcome.code == 0 and f"what the head of '{task}' reads" in outcome.err
        found[task] = {row["source"]: row for row in outcome.json()}
        own = Study.load(study).with_values({"transfer.source": "apart", "transfer.source_task": task})
        source = find_sources(own).main
        train = TargetData.of(own).read_by(source).train
        features = source.encoder.eval()(train.features).detach().numpy()
        assert found[task]["apart"]["logme"] == pytest.approx(logme(features, train.targets[:, 0].numpy(), True))
    assert found["sold"]["apart"]["logme"] != found["price"]["apart"]["logme"]
    assert found["sold"]["helpful"] == found["price"]["helpful"]
    refused = polyshot("rank-sources", study, "apart", "helpful", "--set", "transfer.source_task=prize")
    assert refused.code == 2 and "has no task 'prize'; name one of sold, price" in refused.err


def test_features_of_layers_go_to_a_file(runs: Path, polyshot) -> None:
    rows = table(30, 5)
    rows.to_csv("rows.csv", index=False)
    arguments = ("features", runs / "runs/helpful", "rows.csv", "-o")
    assert polyshot(*arguments, "all.parquet").code == 0
    everything = pd.read_parquet("all.parquet")
    assert everything.shape == (30, 32)
    assert polyshot(*arguments, "second.csv", "--layer", "sharing.encoder.blocks.1").code == 0
    np.testing.assert_allclose(pd.read_csv("second.csv"), everything, rtol=1e-5)
    assert polyshot(*arguments, "pca.parquet", "--pca", 3).code == 0
    expected = PCA(3, whiten=True, svd_solver="full").fit_transform(everything.to_numpy(dtype=float))
    np.testing.assert_allclose(pd.read_parquet("pca.parquet"), expected, atol=1e-5)
    assert polyshot(*arguments, "few.csv", "--mutual-information", 4, "--target", "sold").code == 0
    few = pd.read_csv("few.csv")
    assert few.shape == (30, 4) and set(few) < set(everything)

    refused = polyshot(*arguments, "no.csv", "--layer", "sharing.encoder.blocks.7")
    assert refused.code == 2 and "Did you mean 'sharing.encoder.blocks.1'?" in refused.err


def test_what_cannot_be_selected_is_said(runs: Path) -> None:
    rows = table(30, 5)
    with pytest.raises(StudyError, match="needs --target"):
        features(runs / "runs/helpful", rows, mutual_information=3)
    with pytest.raises(StudyError, match="exclude each other"):
        features(runs / "runs/helpful", rows, pca=2, mutual_information=3, target="sold")
    with pytest.raises(RunError, match="neither a run's folder"):
        features("nowhere", rows)
