"""Encoders of text that are trained: tokens, one vector a row and one for each word, rates of their own, files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_media import requests, tiny_transformer
from helpers_training import trained

from polyshot import Study
from polyshot.data.prepare import prepare
from polyshot.data.text import TokenReading
from polyshot.errors import DataError, RunError, StudyError
from polyshot.models.multitask import build_model
from polyshot.saved_model import SavedModel, save_model, write_model
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingRun
from polyshot.transfer.extraction import hidden_features
from polyshot.transfer.methods import prepare as begin
from polyshot.transfer.problem import Problem, Sources, TargetData
from polyshot.transfer.source import Source
from polyshot.transfer.start import TransferRun
from polyshot.transfer.transferability.h_score import h_score
from polyshot.transfer.transferability.leep import leep
from polyshot.transfer.transferability.logme import logme
from polyshot.transfer.transferability.ranking import ranking

pytest.importorskip("transformers")

TASKS = {
    "intent": {"kind": "binary"},
    "slots": {"kind": "tokens", "words": "words"},
    "length": {"kind": "regression"},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_transformer(tmp_path_factory.mktemp("tiny") / "encoder")


def study_of(tiny, values: dict | None = None, tasks: dict | None = None) -> Study:
    study = Study.from_dict(
        {
            "name": "requests",
            "data": {"source": "made-here.csv", "columns": {"words": "text"}},
            "tasks": tasks or TASKS,
            "model": {"encoder": {"kind": "transformer", "model": str(tiny), "max_tokens": 12}},
            "training": {"epochs": 3, "batch_size": 16, "optimiser": {"learning_rate": 5e-3}, "early_stopping": None},
            "scale": {"device": "cpu"},
        }
    )
    return study.with_values(values or {})


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_row_is_its_tokens_and_the_place_of_each_word_s_first_one(tiny) -> None:
    reading = TokenReading(str(tiny), 8, words=4)
    row = reading.read(pd.Series(["unbelievable soup now"]))[0]
    names = ["[CLS]", "un", "##believ", "##able", "soup", "now", "[SEP]"]
    vocabulary = reading._tokenizer.get_vocab()
    assert row[:8].tolist() == [*(vocabulary[name] + 1 for name in names), 0]
    assert row[8:].tolist() == [2, 5, 6, 0]  # from 1; the fourth word is not there
    cut = TokenReading(str(tiny), 5, words=4).read(pd.Series([["unbelievable", "soup", "now"]]))[0]
    assert cut[5:].tolist() == [2, 0, 0, 0]  # only the first word is left


def test_padding_changes_nothing(tiny) -> None:
    study, table = study_of(tiny), requests()
    prepared = prepare(study, table)
    encoder = build_model(study, prepared.inputs, prepared.targets).sharing.encoder.eval()
    rows = prepared.train.features[:40]
    together = encoder(rows)
    alone = torch.cat([encoder(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # in batches of like lengths, and back in order
        torch.testing.assert_close(encoder(rows.repeat(4, 1)), together.repeat(4, 1), atol=1e-5, rtol=1e-4)


def test_words_are_read_off_their_first_token_and_rows_are_the_mean(tiny) -> None:
    from transformers import AutoModel, AutoTokenizer

    study = study_of(tiny)
    prepared = prepare(study, requests())
    encoder = build_model(study, prepared.inputs, prepared.targets).sharing.encoder.eval()
    reading = prepared.features
    with torch.no_grad():
        found = encoder.vectors(
            torch.from_numpy(reading.transform(pd.DataFrame({"words": ["eat unbelievable soup"]})))
        )[0]
        network, tokenizer = AutoModel.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
        hidden = network(**tokenizer("eat unbelievable soup", return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(found[0], hidden.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1:4], hidden[[1, 2, 5]], atol=1e-5, rtol=1e-4)
    assert not found[4:].any()


# --- tasks of words --------------------------------------------------------------------------------------------------


def test_padding_is_never_scored(tiny) -> None:
    study = study_of(tiny, {"data.ignore": ["intent", "length"]}, tasks={"slots": TASKS["slots"]})
    prepared = prepare(study, requests())
    run = TrainingRun(study, prepared)
    words = np.array([len(text.split()) for text in requests().iloc[prepared.rows["train"]]["slots"]])
    assert (prepared.train.mask.sum(1).numpy() == words).all()

    outputs = run.outputs(prepared.train)
    of_words = outputs.unflatten(1, (prepared.targets[0].places, -1))
    other = of_words.clone()
    other[~prepared.train.mask] = 50.0 * torch.randn_like(other[~prepared.train.mask])
    losses = [run.losses(some, prepared.train.targets, prepared.train.mask) for some in (outputs, other.flatten(1))]
    assert torch.equal(*losses)
    from polyshot.training.metrics import evaluate

    judged = [
        evaluate(
            some.numpy(),
            prepared.train.targets.numpy(),
            prepared.train.mask.numpy(),
            prepared.targets,
            run.model.layout,
        )
        for some in (outputs, other.flatten(1))
    ]
    assert judged[0] == judged[1]


def test_tasks_of_rows_and_of_words_are_learnt_together(tiny) -> None:
    study = study_of(tiny, {"training.epochs": 12, "model.encoder.learning_rate_factor": 0.5})
    prepared = prepare(study, requests(300))
    run = trained(study, prepared)
    metrics = run.evaluate(prepared.test)
    assert metrics["intent/accuracy"] == 1
    assert metrics["slots/f1"] > 0.95 and metrics["slots/accuracy"] > 0.95
    assert metrics["length/r2"] > 0.5


def test_labels_that_are_missing_teach_nothing(tiny) -> None:
    table = requests()
    table.loc[::2, "slots"] = None
    prepared = prepare(study_of(tiny), table)
    unlabelled = prepared.rows["train"] % 2 == 0
    slots = prepared.labels.columns[1]
    assert not prepared.train.mask[unlabelled][:, slots].any()
    assert prepared.train.mask[~unlabelled][:, slots].any(1).all()
    assert len(prepared.for_task("slots").train) == (~unlabelled).sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": "O O"}, ["tasks.slots", "2 labels in row 1", "of 'words'"]),
        ({"slots": "city"}, ["'city'", "BIO", "accuracy"]),
        ({"words": "slots"}, ["tasks.slots.words", "no feature"]),
    ],
)
def test_labels_that_cannot_be_are_said(tiny, change, words) -> None:
    table = requests()
    study = study_of(tiny)
    if "words" in change:
        study = study_of(tiny, {"data.ignore": ["words"]}).with_values({"data.columns": {}})
        table["other"] = 1.5
    elif change["slots"] == "city":
        table["slots"] = [" ".join(["city"] * len(text.split())) for text in table["words"]]
        table.loc[3, "slots"] = table.loc[3, "slots"].replace("city", "town")
    else:
        table.loc[0, "slots"] = change["slots"]
    with pytest.raises(DataError) as caught:
        prepare(study, table)
    for word in words:
        assert word in str(caught.value)


def test_words_need_an_encoder_that_reads_them(tiny) -> None:
    with pytest.raises(StudyError, match="'mlp' reads no words, and task 'slots' labels them"):
        Study.from_dict({"name": "s", "data": {"source": "x.csv"}, "tasks": {"slots": TASKS["slots"]}})
    with pytest.raises(StudyError, match=r"balance\.at.*one for each word"):
        study_of(tiny, {"balance": {"kind": "mgda", "at": "features"}})
    long = study_of(tiny, {"model.encoder.max_tokens": 33})
    prepared = prepare(long, requests())
    with pytest.raises(StudyError, match=r"max_tokens: the encoder reads 32 tokens at most, got 33"):
        build_model(long, prepared.inputs, prepared.targets)
    with pytest.raises(DataError, match="'transformer' reads text only and 'length' is none"):
        prepare(study_of(tiny, tasks={"intent": {"kind": "binary"}, "slots": TASKS["slots"]}), requests())


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"model.sharing": {"kind": "soft"}},
        {"model.sharing": {"kind": "hierarchical", "depths": {"slots": 1}}},
        {"model.sharing": {"kind": "grouped", "groups": [["intent", "slots"], ["length"]]}},
        {"balance": {"kind": "uncertainty"}},
        {"balance": {"kind": "cagrad"}},
        {"balance": {"kind": "graddrop"}, "model.sharing": {"kind": "soft"}},
        {"balance": {"kind": "gradnorm"}},
        {"training.sampling": {"kind": "joint"}},
        {"training.precision": "bfloat16"},
        {"model.encoder.checkpoint_activations": True},
    ],
    ids=str,
)
def test_it_trains_in_every_way(tiny, values) -> None:
    study = study_of(tiny, {"training.epochs": 2, **values})
    prepared = prepare(study, requests(80))
    run = trained(study, prepared)
    assert run.history[1].metrics["train/loss"] < run.history[0].metrics["train/loss"]
    assert math.isfinite(run.history[-1].metrics["val/loss"])


def test_schemes_that_read_numbers_are_refused(tiny) -> None:
    for sharing in ({"kind": "mmoe"}, {"kind": "cross_stitch"}, {"kind": "ple"}):
        study = study_of(tiny, {"model.sharing": sharing})
        prepared = prepare(study, requests(80))
        with pytest.raises(StudyError, match="choose hard, soft or grouped"):
            build_model(study, prepared.inputs, prepared.targets)


def test_tasks_may_read_lower_layers(tiny) -> None:
    study = study_of(tiny, {"model.sharing": {"kind": "hierarchical", "depths": {"slots": 1, "intent": 1}}})
    prepared = prepare(study, requests(60))
    model = build_model(study, prepared.inputs, prepared.targets).eval()
    encoder = build_model(study_of(tiny), prepared.inputs, prepared.targets).sharing.encoder.eval()
    rows = prepared.train.features[:7]
    first, last = encoder.network(
        input_ids=rows[:, :12].long().sub(1).clamp(min=0),
        attention_mask=(rows[:, :12] > 0).long(),
        output_hidden_states=True,
    ).hidden_states[1:]
    read = model.representation(rows).unflatten(-1, (encoder.places, -1))  # [T, B, P, H]
    there = (rows[:, :12] > 0).unsqueeze(2)
    for task, hidden in ((0, first), (1, first), (2, last)):
        torch.testing.assert_close(read[task, :, 0], (hidden * there).sum(1) / there.sum(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read[1, :, 1], first[:, 1], atol=1e-5, rtol=1e-4)
    own = {id(part.parameter) for part in model.task_parameters(2)}
    assert all(id(parameter) in own for parameter in model.sharing.encoder.layers[2].parameters())
    assert not any(id(parameter) in own for parameter in model.sharing.encoder.layers[1].parameters())
    shallow = study.with_values({"model.sharing": {"kind": "hierarchical", "depths": dict.fromkeys(TASKS, 1)}})
    assert build_model(shallow, prepared.inputs, prepared.targets).sharing.encoder.depth == 1
    deeper = study.with_values({"model.sharing": {"kind": "hierarchical", "depths": {"slots": 3}}})
    with pytest.raises(StudyError, match="layer 3 was asked for and the encoder has 2"):
        build_model(deeper, prepared.inputs, prepared.targets)


def test_activations_computed_again_give_the_same_gradients(tiny) -> None:
    runs = []
    for again in (False, True):
        study = study_of(tiny, {"training.epochs": 1, "model.encoder.checkpoint_activations": again})
        runs.append(weights(trained(study, prepare(study, requests(60)))))
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, msg=name)


def test_layers_divided_and_computed_again_in_parts_learn_the_same(tiny, tmp_path) -> None:
    """All that makes large encoders fit, together; two workers are in test_training_distributed.py."""
    parts = {"training.accumulate": 3}  # each draws the units to drop, so that both runs must have them
    large = parts | {"model.encoder.checkpoint_activations": True}
    prepared = prepare(study_of(tiny), requests(60))
    expected = trained(study_of(tiny, parts), prepared)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        run = TrainingRun(study_of(tiny, large), prepared, shard=True)
        list(run.epochs())
        state = run.state_dict()["model"]
    finally:
        torch.distributed.destroy_process_group()
    losses = [[epoch.metrics["val/loss"] for epoch in found.history] for found in (run, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in expected.state_dict()["model"].items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_encoder_learns_at_a_rate_of_its_own_and_lower_layers_more_slowly(tiny) -> None:
    values = {
        "training.epochs": 1,
        "training.batch_size": 512,
        "training.optimiser": {"kind": "sgd", "learning_rate": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
        "training.schedule.kind": "constant",
    }
    moved = {}
    for name, own in (
        ("plain", {}),
        ("own", {"model.encoder.learning_rate_factor": 0.5, "model.encoder.layer_decay": 0.5}),
    ):
        study = study_of(tiny, values | own)
        prepared = prepare(study, requests(60))
        run = TrainingRun(study, prepared)
        before = weights(run)
        next(run.epochs())
        moved[name] = {key: float((value - before[key]).norm()) for key, value in weights(run).items()}
    of = "sharing.encoder.network."
    for part, factor in (
        ("heads.linear.weight", 1.0),
        (f"{of}encoder.layer.1.output.dense.weight", 0.5),
        (f"{of}encoder.layer.0.output.dense.weight", 0.25),
        (f"{of}embeddings.word_embeddings.weight", 0.125),
    ):
        assert moved["own"][part] == pytest.approx(factor * moved["plain"][part], rel=1e-3), part


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(tiny, tmp_path) -> None:
    study = study_of(tiny, {"model.encoder.learning_rate_factor": 0.3, "training.epochs": 2})
    prepared = prepare(study, requests(80))
    whole = trained(study, prepared)
    first = TrainingRun(study, prepared)
    next(first.epochs())
    save_checkpoint(first.state_dict(), tmp_path / "checkpoint.pt")
    again = TrainingRun(study, prepared)
    again.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    next(again.epochs())
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_a_saved_model_needs_nothing_but_its_folder(tiny, tmp_path) -> None:
    elsewhere = tmp_path / "encoder-for-training"
    tiny.rename(elsewhere)
    try:
        study = study_of(elsewhere)
        prepared = prepare(study, requests())
        run = trained(study, prepared)
        save_model(tmp_path / "model", study, prepared, run)
        rows = requests(30, seed=1)
        expected = run.model(torch.from_numpy(prepared.features.transform(rows)))
    finally:
        elsewhere.rename(tiny)
    (tmp_path / "model").rename(tmp_path / "moved")
    loaded = SavedModel.load(tmp_path / "moved")
    torch.testing.assert_close(
        loaded.model(torch.from_numpy(loaded.features.transform(rows))), expected, atol=1e-5, rtol=1e-4
    )

    predicted = loaded.predict(rows)
    lengths = [len(text.split()) for text in rows["words"]]
    assert [len(text.split()) for text in predicted["slots"]] == lengths
    assert set(" ".join(predicted["slots"]).split()) <= {"O", "B-city", "I-city", "B-food", "I-food"}
    longer = pd.DataFrame({"words": ["please " * 20]})
    assert len(loaded.predict(longer)["slots"][0].split()) == 20


def test_the_command_trains_and_the_logged_model_labels_words(tiny, tmp_path, polyshot) -> None:
    import mlflow

    requests(90).to_csv(tmp_path / "requests.csv", index=False)
    study = study_of(tiny, {"data.source": "requests.csv", "training.epochs": 2, "training.steps_per_epoch": 3})
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    outcome = polyshot("train", "study.yaml", "--no-baselines", "--json")
    assert outcome.code == 0, outcome.err
    requests(6, seed=2)[["words"]].to_csv(tmp_path / "rows.csv", index=False)
    assert polyshot("predict", "requests", "rows.csv", "-o", "predicted.csv").code == 0
    predicted = pd.read_csv(tmp_path / "predicted.csv")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/polyshot-runs/mlflow.db")
    logged = mlflow.pyfunc.load_model(f"runs:/{outcome.json()['mlflow_run_id']}/model")
    assert list(logged.predict(pd.read_csv(tmp_path / "rows.csv"))["slots"]) == list(predicted["slots"])
    assert len(logged.input_example) == 5


def test_features_are_extracted_of_rows_and_not_of_tokens(tiny) -> None:
    study = study_of(tiny)
    prepared = prepare(study, requests(100))
    model = build_model(study, prepared.inputs, prepared.targets).eval()
    saved = SavedModel(study, model, prepared.features, prepared.targets)
    found = hidden_features(saved, requests(100))
    with torch.no_grad():
        expected = model.sharing.encoder.vectors(torch.from_numpy(prepared.features.transform(requests(100))))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(RunError, match="a vector for each token; use representation"):
        hidden_features(saved, requests(100), "sharing.encoder.network.encoder.layer.0")


# --- transfer --------------------------------------------------------------------------------------------------------


def transferring(tiny, tasks: dict, target_tasks: dict | None = None) -> tuple[Source, Problem]:
    """A source of requests, and a problem of forty more with fewer labels."""
    known = {task: own for task, own in TASKS.items() if task in tasks}
    ignored = {"data.ignore": [task for task in TASKS if task not in tasks]}
    study = study_of(tiny, {"training.epochs": 6, **ignored}, known)
    prepared = prepare(study, requests(200))
    run = trained(study, prepared)
    source = Source("there", SavedModel(study, run.model.eval(), prepared.features, prepared.targets), study)
    own = {task: own for task, own in TASKS.items() if task in (target_tasks or tasks)}
    ignored = {"data.ignore": [task for task in TASKS if task not in own]}
    target = study_of(tiny, {"training.epochs": 2, **ignored}, own)
    return source, Problem.of(TargetData.of(target, requests(120, seed=5)), Sources(source), 40, 0)


@pytest.fixture(scope="module")
def of_rows(tiny):
    return transferring(tiny, {"intent": ..., "length": ...})


@pytest.fixture(scope="module")
def of_words(tiny):
    return transferring(tiny, {"intent": ...}, {"intent": ..., "slots": ...})


@pytest.fixture(scope="module")
def from_words(tiny):
    return transferring(tiny, {"intent": ..., "slots": ...}, {"intent": ...})


def transferred(problem: Problem, source: Source, method: dict, tmp_path) -> TransferRun:
    """The method's run, whose saved model predicts what was judged."""
    study = problem.study.with_values({"transfer.methods": {"m": method}})
    run = TransferRun(begin(study.transfer.methods["m"], problem), problem)
    for _ in run.epochs():
        pass
    before = {name: value.clone() for name, value in source.saved.model.state_dict().items()}
    _, metrics = run.judged(run.prepared.test)
    saved = run.saved_model()
    write_model(tmp_path / "model", saved, run.prepared.example)
    rows = problem.target.table.iloc[problem.target.own.rows["test"]]
    loaded = SavedModel.load(tmp_path / "model")
    inputs = [torch.from_numpy(model.features.transform(rows)) for model in (saved, loaded)]
    expected, again = (model.model(own) for model, own in zip((saved, loaded), inputs, strict=True))
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-3)
    accuracy = (loaded.predict(rows)["intent"] == rows["intent"]).mean()
    assert accuracy == pytest.approx(metrics["intent/accuracy"])
    after = source.saved.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    return run


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "fine_tuning", "layers": 1, "layer_decay": 0.5},
        {"kind": "linear_probe"},
        {"kind": "knn"},
        {"kind": "l2_sp"},
        {"kind": "adapters", "width": 4},
        {"kind": "lora", "rank": 2},
        {"kind": "distillation"},
        {"kind": "feature_mapping"},
        {"kind": "selective", "features": 8},
        {"kind": "selective", "features": 8, "layers": [1]},
        {"kind": "deep_coral"},
    ],
    ids=lambda method: method["kind"],
)
def test_every_method_of_transfer_takes_a_transformer(of_rows, method, tmp_path, monkeypatch) -> None:
    if method["kind"] == "lora":
        pytest.importorskip("peft")
    source, problem = of_rows
    monkeypatch.setitem(source.__dict__, "prepared", prepare(source.study, requests(200)))
    run = transferred(problem, source, method, tmp_path)
    frozen = {"fine_tuning": "embeddings.", "linear_probe": "", "knn": "", "adapters": ""}
    if (kept := frozen.get(method["kind"])) is not None:
        theirs = source.encoder.state_dict()
        ours = run.saved_model().model.sharing.encoder
        ours = (ours.encoder if method["kind"] in ("knn", "adapters") else ours).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items() if f"network.{kept}" in name)


@pytest.mark.parametrize("kind", ["fine_tuning", "l2_sp", "adapters", "mixed"])
def test_words_are_labelled_by_an_encoder_that_learnt_of_rows(of_words, kind, tmp_path, monkeypatch) -> None:
    source, problem = of_words
    monkeypatch.setitem(source.__dict__, "prepared", prepare(source.study, requests(200)))
    if kind == "mixed":
        with pytest.raises(RunError, match="labels words"):
            transferred(problem, source, {"kind": kind}, tmp_path)
        return
    transferred(problem, source, {"kind": kind}, tmp_path)


@pytest.mark.parametrize(
    "kind", ["fine_tuning", "knn", "distillation", "mixed", "dann", "deep_coral", "mmd", "gradient_guided"]
)
def test_rows_learn_from_an_encoder_that_labelled_words(from_words, kind, tmp_path, monkeypatch) -> None:
    source, problem = from_words
    monkeypatch.setitem(source.__dict__, "prepared", prepare(source.study, requests(200)))
    run = transferred(problem, source, {"kind": kind}, tmp_path)
    names = [target.task for target in run.prepared.targets]
    assert ("source-slots" in names) is (kind in ("mixed", "dann", "deep_coral", "mmd", "gradient_guided"))


def test_sources_are_ranked_by_the_words_that_are_to_be_labelled(of_words, from_words) -> None:
    knows_rows, knows_words = (replace(source, name=name) for (source, _), name in zip(
        (of_words, from_words), ("rows", "words"), strict=True))  # fmt: skip
    target = of_words[1].target
    ranked = ranking(target, [knows_rows, knows_words])
    of_slots = ranked[ranked["task"] == "slots"].set_index("source")
    assert list(of_slots.index) == ["words", "rows"]
    assert of_slots.loc["words", "leep_task"] == "slots" and math.isnan(of_slots.loc["rows", "leep"])
    # By hand: the vectors of the words of each row, read one row at a time, and what the source's head says of them.
    read, vectors, labels = target.read_by(knows_words).train, [], []
    columns = target.own.labels.columns[1]
    encoder = build_model(target.study, target.read_by(knows_words).inputs, target.own.targets).sharing.encoder.eval()
    encoder.load_state_dict(knows_words.encoder.state_dict())
    with torch.no_grad():
        for row, known, own in zip(read.features, read.mask[:, columns], read.targets[:, columns], strict=True):
            vectors.append(encoder.vectors(row.unsqueeze(0))[0, 1:][known])
            labels.append(own[known])
        words, of_words_labels = torch.cat(vectors), torch.cat(labels).double().numpy()
        heads = knows_words.saved.model.heads
        own = heads.weights.columns[1]
        said = (words @ heads.linear.weight[own].T + heads.linear.bias[own]).softmax(1).double().numpy()
    assert of_slots.loc["words", "logme"] == pytest.approx(logme(words.numpy(), of_words_labels, True), rel=1e-4)
    assert of_slots.loc["words", "h_score"] == pytest.approx(h_score(words.double().numpy(), of_words_labels), rel=1e-3)
    assert of_slots.loc["words", "leep"] == pytest.approx(leep(said, of_words_labels), rel=1e-4)


@pytest.mark.parametrize("sharing", [{"kind": "soft"}, {"kind": "hierarchical", "depths": {"intent": 1}}], ids=str)
def test_what_one_task_reads_of_text_is_transferred(of_rows, sharing, tmp_path) -> None:
    source, problem = of_rows
    study = source.study.with_values({"model.sharing": sharing})
    model = build_model(study, source.saved.features.layout, source.saved.targets).eval()
    apart = Source("apart", replace(source.saved, study=study, model=model), study, "intent")
    transferred(replace(problem, sources=Sources(apart)), apart, {"kind": "fine_tuning"}, tmp_path)


def test_methods_that_are_of_rows_refuse_tasks_of_words(of_words, tmp_path) -> None:
    source, problem = of_words
    for kind in ("knn", "selective", "feature_mapping", "distillation"):
        with pytest.raises(RunError, match=f"'{kind}' is of rows, and task 'slots' labels words"):
            transferred(problem, source, {"kind": kind}, tmp_path)
