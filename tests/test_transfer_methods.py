"""Every method of transfer keeps one contract on a small real table, and is what its paper says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from polyshot.data.prepare import prepare
from polyshot.errors import DataError, RunError
from polyshot.models.multitask import build_model
from polyshot.saved_model import SavedModel, write_model
from polyshot.study import Study
from polyshot.study.transfer import DANN
from polyshot.training.loop import TrainingRun
from polyshot.transfer.methods import METHODS, dann, deep_coral, gradient_guided, mmd
from polyshot.transfer.methods import prepare as begin
from polyshot.transfer.methods.adapters import AdaptedEncoder
from polyshot.transfer.methods.distillation import softened_divergence
from polyshot.transfer.model import TransferModel, layers_of
from polyshot.transfer.problem import Problem, Sources, TargetData
from polyshot.transfer.selection import by_mutual_information, principal_components
from polyshot.transfer.source import Source
from polyshot.transfer.start import Start, TransferRun

EXTRAS = {"lora": "peft"}
OPTIONS: dict[str, dict[str, Any]] = {
    "selective": {"features": 8},
    "selective of all layers": {"features": 8, "layers": "all", "learning_rate": 0.05},
    "dann": {"width": 8},
    "meta_learned": {"run": "l"},
}
# The source's encoder stays as it is, and nothing else is put round it.
FROZEN = ("linear_probe", "feature_mapping", "selective")


def cancers() -> pd.DataFrame:
    """Wisconsin's breast cancers: 569 rows, some of their measurements as features and two as tasks."""
    data = load_breast_cancer(as_frame=True)
    table = data.data.rename(columns=lambda name: name.replace(" ", "-"))
    columns = [name for name in table.columns if name.startswith("worst")]
    return table[[*columns, "mean-area", "mean-smoothness"]].assign(malignant=data.target == 0)


def study(name: str, tasks: dict[str, Any], **values: Any) -> Study:
    return Study.from_dict(
        {
            "name": name,
            "data": {"source": "cancers.csv", "split": {"validation": 0.2, "test": 0.3}},
            "tasks": tasks,
            "model": {"encoder": {"width": 16, "dropout": 0.1}},
            "training": {"epochs": 4, "batch_size": 32, "optimiser": {"learning_rate": 5e-3}, "early_stopping": None},
            "scale": {"device": "cpu"},
        }
    ).with_values(values)


class Learner:
    """Stands for a meta-trained one: a model that was trained on the rows it is to adapt to."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def adapt_table(self, rows: pd.DataFrame, *, steps: int | None = None) -> SavedModel:
        own = study("adapted", {"malignant": {"kind": "binary"}}, **{"training.epochs": steps or 1})
        return saved(own, rows.drop(columns="mean-smoothness"))


def saved(of: Study, rows: pd.DataFrame) -> SavedModel:
    prepared = prepare(of, rows)
    run = TrainingRun(of, prepared)
    list(run.epochs())
    run.restore_best()
    return SavedModel(of, run.model.eval(), prepared.features, prepared.targets)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    rows = cancers().iloc[:300].drop(columns="mean-smoothness")
    rows.to_csv(folder / "cancers.csv", index=False)
    (folder / "study.yaml").write_text(
        study(
            "there", {"area": {"kind": "regression", "target": "mean-area"}, "malignant": {"kind": "binary"}}
        ).to_yaml()
    )
    of = Study.load(folder / "study.yaml")
    return Source("there", saved(of, pd.read_csv(folder / "cancers.csv")), of)


@pytest.fixture(scope="module")
def target() -> TargetData:
    """Another hospital's rows: one task that the source has too, and one that it has not."""
    tasks = {"malignant": {"kind": "binary"}, "smoothness": {"kind": "regression", "target": "mean-smoothness"}}
    return TargetData.of(study("here", tasks), cancers().iloc[300:].drop(columns="mean-area").reset_index(drop=True))


@pytest.fixture(scope="module")
def problem(source: Source, target: TargetData) -> Problem:
    return Problem.of(target, Sources(source, learners={"l": Learner()}), 40, 0)


def started(kind: str, problem: Problem, **options: Any) -> Start:
    if kind in EXTRAS:
        pytest.importorskip(EXTRAS[kind])
    methods = {"m": {"kind": kind.partition(" ")[0]} | OPTIONS.get(kind, {}) | options}
    return begin(
        Study.from_dict(problem.study.to_dict() | {"transfer": {"methods": methods}}).transfer.methods["m"], problem
    )


def trained(start: Start, problem: Problem) -> TransferRun:
    run = TransferRun(start, problem)
    list(run.epochs())
    return run


def weights_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().float() for value in module.state_dict().values()])


KINDS = [settings.model_fields["kind"].annotation.__args__[0] for settings in METHODS]


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "selective of all layers"])
class TestContract:
    def test_what_is_saved_predicts_what_was_judged_and_the_source_stays(
        self, kind: str, problem: Problem, source: Source, tmp_path
    ) -> None:
        before = weights_of(source.saved.model)
        run = trained(started(kind, problem), problem)
        predictions, metrics = run.judged(run.prepared.test)
        write_model(tmp_path / "model", run.saved_model(), run.prepared.example)
        again = SavedModel.load(tmp_path / "model").predict(problem.target.table.iloc[problem.target.own.rows["test"]])
        assert list(predictions) == ["malignant", "smoothness"]
        np.testing.assert_allclose(again["malignant_probability"], predictions["malignant"], atol=1e-5)
        np.testing.assert_allclose(again["smoothness"], predictions["smoothness"], rtol=1e-4)
        assert torch.equal(weights_of(source.saved.model), before)
        assert metrics["malignant/roc_auc"] > 0.8

    def test_the_same_seed_gives_the_same_model_also_when_interrupted(self, kind: str, problem: Problem) -> None:
        through = trained(started(kind, problem), problem)
        first = TransferRun(started(kind, problem), problem)
        next(first.epochs())
        second = TransferRun(started(kind, problem), problem)
        second.load_state_dict(first.state_dict())
        list(second.epochs())
        losses = [[epoch.metrics["val/loss"] for epoch in run.history] for run in (through, second)]
        assert losses[0] == losses[1]

    def test_a_frozen_encoder_stays_the_source_s_and_others_learn(
        self, kind: str, problem: Problem, source: Source
    ) -> None:
        run = trained(started(kind, problem), problem)
        left = run.saved_model().model.sharing.encoder
        if kind in ("knn", "adapters", "selective of all layers"):
            left = left.encoder
        if kind in ("distillation", "meta_learned"):  # they do not start there
            return
        is_kept = torch.equal(weights_of(left), weights_of(source.encoder))
        assert is_kept == (kind in (*FROZEN, "knn", "adapters", "selective of all layers"))


def test_every_method_has_a_section_and_a_file() -> None:
    assert len(set(KINDS)) == len(METHODS) == 15
    for settings, function in METHODS.items():
        assert (
            function.__module__ == f"polyshot.transfer.methods.{settings.model_fields['kind'].annotation.__args__[0]}"
        )


# --- where training begins -------------------------------------------------------------------------------------------


def test_a_task_of_the_source_keeps_its_head_and_predictions(problem: Problem, source: Source) -> None:
    start = started("fine_tuning", problem)
    assert start.model is not None
    rows = problem.target.table
    outputs = start.model.eval()(torch.from_numpy(start.prepared.features.transform(rows)))
    probability = torch.sigmoid(outputs[:, start.model.layout.columns[0]])[:, 0].detach().numpy()
    expected = source.saved.predict(rows)["malignant_probability"]
    np.testing.assert_allclose(probability, expected, atol=1e-6)


def test_a_regression_head_is_put_into_the_target_s_units(source: Source) -> None:
    own = study("same", {"area": {"kind": "regression", "target": "mean-area"}})
    rows = cancers().iloc[300:].drop(columns=["mean-smoothness", "malignant"]).reset_index(drop=True)
    data = TargetData.of(own, rows.assign(**{"mean-area": rows["mean-area"] * 1.5 + 100}))
    problem = Problem.of(data, Sources(source), "all", 0)
    start = started("fine_tuning", problem)
    outputs = start.model.eval()(start.prepared.test.features)[:, 0].detach().numpy()
    expected = source.saved.predict(data.table.iloc[data.own.rows["test"]])["area"]
    np.testing.assert_allclose(problem.targets[0].decode(outputs), expected, rtol=1e-4)


def test_only_the_top_layers_are_trained(problem: Problem, source: Source) -> None:
    run = trained(started("fine_tuning", problem, layers=1), problem)
    before, after = layers_of(source.encoder), layers_of(run.saved_model().model.sharing.encoder)
    assert [torch.equal(weights_of(a), weights_of(b)) for a, b in zip(before, after, strict=True)] == [True, False]


def test_layers_are_unfrozen_from_the_top(problem: Problem, source: Source) -> None:
    run = TransferRun(started("fine_tuning", problem, unfreeze_every=1), problem)
    kept = []
    for _ in run.epochs():
        pairs = zip(layers_of(source.encoder), layers_of(run.model.sharing.encoder), strict=True)
        kept.append([torch.equal(weights_of(a), weights_of(b)) for a, b in pairs])
    assert kept == [[True, True], [True, False], [False, False], [False, False]]


def test_lower_layers_learn_at_lower_rates(problem: Problem, source: Source) -> None:
    plain = replace(problem, study=problem.study.with_values({"training.optimiser": {"kind": "sgd", "momentum": 0.0}}))
    moved = []
    for decay in (1.0, 0.5):
        start = started("fine_tuning", plain, layer_decay=decay)
        one = start.study.with_values(
            {"training.epochs": 1, "training.batch_size": 10_000, "model.encoder.dropout": 0.0}
        )
        run = TransferRun(replace(start, study=one), problem)
        next(run.epochs())
        pairs = zip(layers_of(source.encoder), layers_of(run.model.sharing.encoder), strict=True)
        moved.append([weights_of(b) - weights_of(a) for a, b in pairs])
    torch.testing.assert_close(moved[1][1], 0.5 * moved[0][1], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(moved[1][0], 0.25 * moved[0][0], rtol=1e-2, atol=1e-6)


def test_l2_sp_is_its_equation_and_holds_the_encoder(problem: Problem, source: Source) -> None:
    start = started("l2_sp", problem, strength=0.5, head_strength=0.1)
    model = start.model
    assert isinstance(model, TransferModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    encoder = 0.01**2 * sum(p.numel() for p in model.encoder.parameters())
    _, new = model.layout.columns
    linear = model.heads.linear
    heads = 0.5 * 0.01**2 * 17 + 0.1 * float(
        (linear.weight[new] ** 2).sum().item() + (linear.bias[new] ** 2).sum().item()
    )
    assert model.penalty().item() == pytest.approx(float(0.5 * encoder + heads) / 2, rel=1e-4)
    assert start.study.training.optimiser.weight_decay == 0

    distances = []
    for strength in (0.0, 10.0):
        run = trained(started("l2_sp", problem, strength=strength), problem)
        distances.append((weights_of(run.model.sharing.encoder) - weights_of(source.encoder)).norm())
    assert distances[1] < 0.2 * distances[0]


# --- features as they are --------------------------------------------------------------------------------------------


def test_nearest_neighbours_are_scikit_learn_s(problem: Problem, source: Source) -> None:
    run = trained(started("knn", problem, neighbours=4), problem)
    predictions, _ = run.judged(run.prepared.test)
    with torch.no_grad():
        rows, test = (source.encoder.eval()(part.features).numpy() for part in (problem.once, run.prepared.test))
    labels = problem.once.targets.numpy()
    classes = KNeighborsClassifier(4).fit(rows, labels[:, 0]).predict_proba(test)[:, 1]
    np.testing.assert_allclose(predictions["malignant"], (4 * classes + 0.5) / 5, atol=1e-6)
    values = KNeighborsRegressor(4).fit(rows, labels[:, 1]).predict(test)
    np.testing.assert_allclose(predictions["smoothness"], problem.targets[1].decode(values), rtol=1e-5)


def test_adapters_begin_at_the_source_s_function(problem: Problem, source: Source) -> None:
    start = started("adapters", problem)
    encoder = start.model.encoder.eval()
    assert isinstance(encoder, AdaptedEncoder)
    rows = problem.once.features
    torch.testing.assert_close(encoder(rows), source.encoder.eval()(rows))
    assert {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad} == {"adapters"}


def test_lora_changes_weights_by_a_low_rank(problem: Problem, source: Source) -> None:
    run = trained(started("lora", problem, rank=2), problem)
    pairs = zip(layers_of(source.encoder), layers_of(run.saved_model().model.sharing.encoder), strict=True)
    for before, after in pairs:
        change = (after[0].weight - before[0].weight).detach()
        assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
        assert torch.equal(after[0].bias, before[0].bias)


def test_principal_components_are_scikit_learn_s() -> None:
    features = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5, 3, 2, 1, 0.1, 0])
    found = principal_components(features, 3)(features)
    np.testing.assert_allclose(found, PCA(3, whiten=True, svd_solver="full").fit_transform(features), atol=1e-8)
    assert principal_components(features, 6).matrix.shape == (6, 5)  # the last one does not vary


def test_principal_components_of_several_layers_weigh_them_alike() -> None:
    random = np.random.default_rng(0)
    large, small = 1000 * random.normal(size=(50, 1)), random.normal(size=(50, 1))
    features = np.concatenate([large, small, np.full((50, 2), 0.1)], 1)
    found = principal_components(features, 4, [1, 1, 2])(features)
    expected = PCA(2, whiten=True).fit_transform(np.concatenate([large / large.std(), small / small.std()], 1))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)


def test_the_useful_feature_may_be_in_an_early_layer_only(source: Source) -> None:
    """Where the last layer reads nothing of what tells, all layers and the best one by LogME find it."""
    own = study("early", {"malignant": {"kind": "binary"}}, **{"training.epochs": 15})
    rows = cancers().iloc[300:].drop(columns=["mean-area", "mean-smoothness"]).reset_index(drop=True)
    rows["malignant"] = rows["worst-texture"] > rows["worst-texture"].median()
    place = source.saved.features.names.index("worst-texture")
    model = build_model(source.saved.study, source.saved.features.layout, source.saved.targets).eval()
    with torch.no_grad():
        first, second = (block[0] for block in model.sharing.encoder.blocks)
        first.weight.zero_()
        first.weight[:10] = torch.eye(10)
        first.bias.fill_(3.0)  # units pass on their columns
        second.weight[:, place] = 0
    early = Source("early", replace(source.saved, model=model), source.study)
    problem = Problem.of(TargetData.of(own, rows), Sources(early), "all", 0)
    for by, count in (("mutual_information", 1), ("pca", 10)):
        reached = {}
        for layers in ("last", "all", "best", [1]):
            options = {"by": by, "features": count, "layers": layers, "learning_rate": 0.05}
            run = trained(started("selective", problem, **options), problem)
            reached[str(layers)] = run.judged(run.prepared.test)[1]["malignant/roc_auc"]
            if layers == "best":
                assert run.saved_model().study.model.encoder.options["layers"] == [1]
        assert reached["last"] < 0.8 and min(reached["all"], reached["best"], reached["[1]"]) > 0.95, reached
    with pytest.raises(RunError, match="names layer 3, and the encoder of 'early' has 2"):
        started("selective", problem, layers=[3])


def test_mutual_information_finds_the_features_that_tell() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 10))
    labels, values = (np.sin(3 * features[:, 7]) > 0).astype(float), features[:, 2] ** 2
    values[::3] = np.nan
    assert set(by_mutual_information(features, [(labels, True), (values, False)], 2)) == {2, 7}


# --- teachers --------------------------------------------------------------------------------------------------------


def test_softened_divergence_is_the_sum_over_classes() -> None:
    outputs, taught = torch.randn(5, 3), torch.randn(5, 3)
    p, q = ((logits / 2).softmax(1) for logits in (taught, outputs))
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(softened_divergence(outputs, taught, 2.0), expected)
    binary = softened_divergence(outputs[:, :1], taught[:, :1], 2.0)
    p, q = ((logits[:, 0] / 2).sigmoid() for logits in (taught, outputs))
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(binary, expected)


def test_a_student_of_another_size_comes_near_its_teacher(problem: Problem, source: Source) -> None:
    small = replace(problem, study=problem.study.with_values({"model.encoder.width": 4, "training.epochs": 30}))
    rows = problem.target.table.iloc[problem.target.own.rows["test"]]
    taught = source.saved.predict(rows)["malignant_probability"]
    distances = []
    for weight in (0.0, 20.0):
        run = trained(started("distillation", small, logits=weight, features=0.1), small)
        found = run.saved_model().predict(rows)["malignant_probability"]
        distances.append(float((found - taught).abs().mean()))
    assert distances[1] < 0.7 * distances[0]


def test_a_teacher_without_shared_tasks_can_teach_features_only(source: Source) -> None:
    own = study("other", {"smoothness": {"kind": "regression", "target": "mean-smoothness"}})
    data = TargetData.of(own, cancers().iloc[300:].drop(columns=["mean-area", "malignant"]).reset_index(drop=True))
    problem = Problem.of(data, Sources(source), "all", 0)
    with pytest.raises(RunError, match="none of this study's tasks"):
        started("distillation", problem, features=0.0)
    assert started("distillation", problem).model.penalty().item() > 0


# --- source rows -----------------------------------------------------------------------------------------------------


def test_mixed_training_has_one_head_for_a_task_of_both(problem: Problem, source: Source) -> None:
    start = started("mixed", problem, target_share=0.25)
    assert [target.task for target in start.prepared.targets] == ["malignant", "smoothness", "source-area"]
    train, theirs = start.prepared.train, len(source.prepared.train)
    assert (len(train) - theirs) / len(train) == pytest.approx(0.25, abs=0.01)
    assert train.mask[-theirs:].any(0).tolist() == [True, False, True]
    assert torch.equal(train.targets[-theirs:, 0], source.prepared.train.targets[:, 1])
    assert not start.prepared.validation.mask[:, 2].any()


def test_only_so_many_source_rows_are_drawn(problem: Problem) -> None:
    assert len(started("mixed", problem, source_rows=20, target_share=0.5).prepared.train) == 20 + 40


def test_guided_gradients_agree_with_the_target_s() -> None:
    random = np.random.default_rng(0)
    gradients = random.normal(size=(4, 5))  # two of the target, two of the source
    weights = gradient_guided.OneSided(2).weights(gradients @ gradients.T, np.ones(4))
    guide = gradients[:2].sum(0)
    expected = guide.copy()
    for own in gradients[2:]:
        along = own @ guide
        expected += own - (along / (guide @ guide) * guide if along < 0 else 0)
    np.testing.assert_allclose(weights @ gradients, expected)
    assert ((gradients[2:] @ guide) < 0).any()


def test_deep_coral_is_the_distance_of_covariances() -> None:
    source, target = torch.randn(40, 3), 2 * torch.randn(40, 3)
    distance = deep_coral.CovarianceAlignment(source, target, 1.0).distance(source, target).item()
    difference = np.cov(source.numpy().T) - np.cov(target.numpy().T)
    assert distance == pytest.approx(np.sum(difference**2) / (4 * 9), rel=1e-4)


def test_mmd_is_the_mean_over_pairs_of_kernels() -> None:
    source, target = torch.randn(6, 3).double(), torch.randn(5, 3).double() + 1
    both = torch.cat([source, target])
    width = torch.stack([((a - b) ** 2).sum() for a in both for b in both]).mean()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(np.mean([torch.exp(-((a - b) ** 2).sum() / (c * width)) for c in (0.25, 0.5, 1, 2, 4)]))

    def mean(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(np.mean([kernel(a, b) for a in x for b in y]))

    expected = mean(source, source) + mean(target, target) - 2 * mean(source, target)
    assert mmd.squared_mmd(source, target).item() == pytest.approx(expected)
    assert mmd.squared_mmd(source, source).item() == pytest.approx(0, abs=1e-12)


def test_the_adversary_s_gradient_is_reversed_and_grows() -> None:
    features = torch.ones(3, requires_grad=True)
    (2 * dann.reverse_gradient(features, 0.5)).sum().backward()
    assert features.grad.tolist() == [-1.0] * 3
    adversary = dann.Adversary(torch.zeros(4, 2), torch.ones(4, 2), 2, DANN(kind="dann"), epochs=10)
    factors = []
    for epoch in (1, 2, 10):
        adversary.begin_epoch(epoch)
        factors.append(adversary.factor)
    assert factors[0] == 0 and factors == sorted(factors) and factors[2] == pytest.approx(1, abs=1e-3)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_columns_that_only_one_table_has(source: Source, target: TargetData) -> None:
    fewer = target.table.drop(columns="worst-radius").assign(town=np.arange(len(target.table)) % 3)
    data = TargetData.of(target.study, fewer)
    notes = source.notes(fewer, target.study)
    assert len(notes) == 2 and "'worst-radius'" in notes[0] and "'town'" in notes[1]
    problem = Problem.of(data, Sources(source), 40, 0)
    run = trained(started("linear_probe", problem), problem)
    model = run.saved_model()
    predicted = model.predict(fewer)
    # A column that was blank in training is not read when it is there again.
    pd.testing.assert_frame_equal(predicted, model.predict(target.table))


def test_a_source_that_knows_none_of_the_columns_is_refused(source: Source, target: TargetData) -> None:
    renamed = target.table.rename(columns=lambda name: name.replace("worst", "largest"))
    with pytest.raises(DataError, match="learnt from no column that this table has"):
        source.reading(renamed, target.study)


# --- sources whose tasks do not all read the same --------------------------------------------------------------------

SCHEMES: dict[str, dict[str, Any]] = {
    "soft": {},
    "grouped": {"groups": [["area"], ["malignant"]]},
    "hierarchical": {"depths": {"area": 1}},
    "cross_stitch": {},
    "attention": {},
    "mmoe": {"experts": 2},
    "cgc": {},
    "ple": {},
}


def sharing_source(source: Source, kind: str, task: str = "malignant", **encoder: Any) -> Source:
    """The source with another sharing scheme, and weights that differ from task to task."""
    own = source.saved.study.with_values(
        {"model.sharing": {"kind": kind} | SCHEMES[kind], **{f"model.encoder.{key}": v for key, v in encoder.items()}}
    )
    model = build_model(own, source.saved.features.layout, source.saved.targets).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.2 * torch.rand(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return Source(kind, replace(source.saved, study=own, model=model), source.study, task)


@pytest.mark.parametrize("kind", SCHEMES)
def test_what_a_task_s_head_reads_is_transferred(kind: str, source: Source, target: TargetData, tmp_path) -> None:
    """Predictions are the source's at the start, and what is trained from there is saved like any other."""
    shared = sharing_source(source, kind, normalisation="batch")
    assert len(shared.readers) == 1 and len(shared.notes(target.table, target.study)) == 1
    own = Problem.of(target, Sources(shared), 40, 0)
    start = started("fine_tuning", own)
    outputs = start.model.eval()(start.prepared.test.features)[:, start.model.layout.columns[0]]
    test = target.table.iloc[target.own.rows["test"]]
    expected = shared.saved.predict(test)["malignant_probability"]
    np.testing.assert_allclose(torch.sigmoid(outputs)[:, 0].detach(), expected, atol=1e-6)
    other = Source(kind, shared.saved, shared.study, "area")
    rows = start.prepared.test.features
    assert not torch.allclose(other.encoder.eval()(rows), shared.encoder.eval()(rows))
    assert other.digest != shared.digest

    run = trained(started("fine_tuning", own), own)
    write_model(tmp_path / "model", run.saved_model(), run.prepared.example)
    again = SavedModel.load(tmp_path / "model").predict(test)["malignant_probability"]
    np.testing.assert_allclose(again, run.judged(run.prepared.test)[0]["malignant"], atol=1e-5)


@pytest.mark.parametrize("scheme", ["soft", "mmoe"])
@pytest.mark.parametrize("kind", ["linear_probe", "knn", "l2_sp", "adapters", "distillation", "mixed", "selective"])
def test_methods_take_an_encoder_of_one_task_and_a_mixture(kind: str, scheme: str, source: Source, target) -> None:
    own = Problem.of(target, Sources(sharing_source(source, scheme)), 40, 0)
    short = replace(own, study=own.study.with_values({"training.epochs": 1}))
    run = trained(started(kind, short), short)
    saved_model = run.saved_model()
    test = target.table.iloc[target.own.rows["test"]]
    found = saved_model.predict(test)["malignant_probability"]
    np.testing.assert_allclose(found, run.judged(run.prepared.test)[0]["malignant"], atol=1e-5)


def test_an_encoder_of_one_task_has_its_layers(source: Source, target: TargetData) -> None:
    shared = sharing_source(source, "soft")
    own = Problem.of(target, Sources(shared), 40, 0)
    run = trained(started("fine_tuning", own, layers=1), own)
    before, after = layers_of(shared.encoder), layers_of(run.saved_model().model.sharing.encoder)
    assert [torch.equal(weights_of(a), weights_of(b)) for a, b in zip(before, after, strict=True)] == [True, False]


def test_a_task_that_the_source_has_not_is_named(source: Source) -> None:
    with pytest.raises(RunError, match="has no task 'malignent'; name one of area, malignant. Did you"):
        sharing_source(source, "soft", "malignent")


# --- several labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fine_tuning", "knn", "distillation", "selective", "mixed", "gradient_guided"])
def test_a_task_of_several_labels_is_transferred_label_by_label(kind: str, tmp_path) -> None:
    """With labels missing here and there; the source has the same task and one of its own."""
    rows = cancers()
    rough = (rows["worst-smoothness"] > 0.13).astype("boolean").mask(np.arange(len(rows)) % 7 == 0)
    rows["large"], rows["rough"] = rows["mean-area"] > 550, rough
    rows = rows.drop(columns=["mean-area", "mean-smoothness", "worst-smoothness"])
    findings = {"findings": {"kind": "multilabel", "target": ["large", "rough"]}}
    rows.iloc[:300].to_csv(tmp_path / "cancers.csv", index=False)
    (tmp_path / "study.yaml").write_text(study("there", {"malignant": {"kind": "binary"}} | findings).to_yaml())
    there = Study.load(tmp_path / "study.yaml")
    source = Source("there", saved(there, pd.read_csv(tmp_path / "cancers.csv")), there)
    here = rows.iloc[300:].drop(columns="malignant").reset_index(drop=True)
    data = TargetData.of(study("here", findings), here)
    problem = Problem.of(data, Sources(source), 60, 0)
    run = trained(started(kind, problem), problem)
    predictions, metrics = run.judged(run.prepared.test)
    assert predictions["findings"].shape[1] == 2 and metrics["findings/roc_auc"] > 0.7
    again = run.saved_model().predict(here.iloc[data.own.rows["test"]])
    np.testing.assert_allclose(again["findings_probability_large"], predictions["findings"][:, 0], atol=1e-5)


def test_a_student_may_share_in_any_way(problem: Problem) -> None:
    mixture = replace(problem, study=problem.study.with_values({"model.sharing": {"kind": "mmoe", "experts": 2}}))
    run = trained(started("distillation", mixture), mixture)
    predictions, _ = run.judged(run.prepared.test)
    predicted = run.saved_model().predict(problem.target.table.iloc[problem.target.own.rows["test"]])
    np.testing.assert_allclose(predicted["malignant_probability"], predictions["malignant"], atol=1e-5)
