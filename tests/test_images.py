"""Columns of images: files and arrays as bytes, CIFAR's files, encoders of images, and tables of several kinds."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_media import requests, tiny_transformer
from helpers_training import trained
from PIL import Image

from polyshot import Study
from polyshot.data.cifar import cifar10, cifar100
from polyshot.data.features import Features
from polyshot.data.images import ImageReading
from polyshot.data.prepare import prepare
from polyshot.data.tables import read_tables
from polyshot.errors import DataError, RunError, StudyError
from polyshot.models.encoders.images import ImageEncoder, augmented
from polyshot.models.multitask import build_model
from polyshot.saved_model import SavedModel, save_model
from polyshot.study.data import Images
from polyshot.transfer.hidden_layers import HiddenLayers
from polyshot.transfer.problem import Sources, TargetData
from polyshot.transfer.source import Source
from polyshot.transfer.trials import trials_of


def picture(seed: int, bright: bool, size: int = 12) -> np.ndarray:
    """Noise, light at the top or at the bottom."""
    pixels = np.random.default_rng(seed).integers(0, 80, (size, size, 3))
    pixels[: size // 2] += 150 * bright
    pixels[size // 2 :] += 150 * (not bright)
    return pixels.astype(np.uint8)


def pictures(folder: Path, count: int = 60) -> Path:
    """A folder of each of two classes."""
    for place in range(count):
        name = "day" if place % 2 else "night"
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(place, bool(place % 2))).save(folder / name / f"{place:03}.png")
    return folder


def study_of(values: dict | None = None, data: dict | None = None) -> Study:
    study = Study.from_dict(
        {
            "name": "pictures",
            "data": {"source": "pictures", "images": {"image": {"size": 8}}} | (data or {}),
            "tasks": {"class": {"kind": "binary"}},
            "model": {"encoder": {"kind": "cnn", "width": 4, "layers": 2}},
            "training": {"epochs": 8, "batch_size": 16, "optimiser": {"learning_rate": 1e-2}, "early_stopping": None},
            "scale": {"device": "cpu"},
        }
    )
    return study.with_values(values or {})


def in_folder(study: Study, folder: Path) -> Study:
    study._folder = folder
    return study


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_class_is_a_table_and_is_learnt(tmp_path) -> None:
    pictures(tmp_path / "pictures")
    study = in_folder(study_of({"data.images": {"image": {"size": 8, "flip": True, "shift": 1}}}), tmp_path)
    prepared = prepare(study)
    assert prepared.train.features.shape[1] == 3 * 8 * 8 / 4  # a byte for each pixel and channel
    run = trained(study, prepared)
    assert run.evaluate(prepared.test)["class/accuracy"] == 1

    save_model(tmp_path / "model", study, prepared, run)
    loaded = SavedModel.load(tmp_path / "model")
    rows = pd.DataFrame({"image": [str(tmp_path / "pictures" / "day" / "001.png"), picture(4, False), None]})
    assert list(loaded.predict(rows)["class"][:2]) == ["day", "night"]


def test_pixels_are_kept_as_they_are_and_normalised_by_the_training_rows() -> None:
    column = pd.Series([picture(seed, seed % 2 == 0) for seed in range(20)], name="image")
    reading = ImageReading(Images(size=12)).fit(column)
    features = Features.fit(column.to_frame(), ["image"], {}, images={"image": ImageReading(Images(size=12))})
    rows = torch.from_numpy(features.transform(column.to_frame()))
    ((pixels, place),) = features.layout.images_of(rows[torch.arange(20)])
    assert pixels.dtype == torch.uint8
    assert (pixels.permute(0, 2, 3, 1).numpy() == np.stack(list(column))).all()
    whole = np.stack(list(column)) / 255
    np.testing.assert_allclose(place.means, whole.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(reading.deviations, whole.std((0, 1, 2)), atol=1e-6)


def test_every_byte_survives_its_way_through_a_row() -> None:
    """Four bytes may be the bits of a number that is none."""
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)[::-1].copy()
    image[:4] = 255
    image[4:6, :, 1:] = 127
    features = Features.fit(
        pd.DataFrame({"image": [image] * 4}), ["image"], {}, images={"image": ImageReading(Images(size=16))}
    )
    rows = torch.from_numpy(features.transform(pd.DataFrame({"image": [image] * 4})))
    assert rows.isnan().any()
    taken = torch.cat([rows.index_select(0, torch.tensor([3, 1])), rows[1:].clone()]).split(2)[0]
    ((pixels, _),) = features.layout.images_of(taken)
    assert (pixels[0].permute(1, 2, 0).numpy() == image).all()


def test_augmented_images_are_mirrored_and_shifted_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 6, 6)
    mirrored = augmented(images, flip=True, shift=0)
    same, flipped = (mirrored == images).flatten(1).all(1), (mirrored == images.flip(3)).flatten(1).all(1)
    assert (same | flipped).all() and 10 < int(flipped.sum()) < 54
    shifted = augmented(images, flip=False, shift=2)
    offsets = set()
    for image, original in zip(shifted, torch.nn.functional.pad(images, [2] * 4), strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(original[:, y : y + 6, x : x + 6], image)]
        assert len(places) == 1
        offsets.update(places)
    assert len(offsets) > 15


def test_a_baseline_and_a_soft_copy_read_images_too() -> None:
    table = pd.DataFrame({"image": [picture(seed, seed % 2 == 0) for seed in range(80)]})
    table["day"] = np.arange(80) % 2 == 0
    table["light"] = [float(image.mean()) for image in table["image"]]
    study = study_of({"tasks": {"day": {"kind": "binary"}, "light": {"kind": "regression"}}, "training.epochs": 2})
    prepared = prepare(study, table)
    runs = [
        *(
            trained(study.with_values({"model.sharing": sharing}), prepared)
            for sharing in ({"kind": "soft"}, {"kind": "grouped", "groups": [["day"], ["light"]]})
        ),
        trained(study.with_values({"balance": {"kind": "mgda"}}), prepared),
        trained(study.single_task("light"), prepared.for_task("light")),
    ]
    assert all(run.finished and np.isfinite(run.history[-1].metrics["val/loss"]) for run in runs)


@pytest.mark.parametrize(
    ("prepare_folder", "words"),
    [
        (lambda folder: (folder / "day" / "001.png").write_bytes(b"no image"), ["'image'", "001.png", "no image that"]),
        (lambda folder: [file.unlink() for file in (folder / "night").iterdir()], ["one folder only, 'day'"]),
        (lambda folder: [file.unlink() for file in folder.rglob("*.png")], ["no table there"]),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_said(prepare_folder, words, tmp_path) -> None:
    prepare_folder(pictures(tmp_path / "pictures"))
    with pytest.raises(DataError) as caught:
        prepare(in_folder(study_of(), tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_columns_that_cannot_be_read_are_said() -> None:
    table = pd.DataFrame({"image": ["nowhere.png"] * 20, "class": ["a", "b"] * 10})
    with pytest.raises(DataError, match="'image' in row 1 names 'nowhere.png', which is not there"):
        prepare(study_of(), table)
    table["image"] = [picture(1, True) / 2.0] * 20
    with pytest.raises(DataError, match="array of shape .* of float64; give whole numbers from 0 to 255"):
        prepare(study_of(), table)
    table["image"] = [picture(1, True)] * 20
    with pytest.raises(DataError, match="'mlp' reads no images, and the column 'image' is one"):
        prepare(study_of({"model.encoder": {"kind": "mlp"}}), table)
    with pytest.raises(DataError, match="'cnn' reads images only and 'size' is none"):
        prepare(study_of(), table.assign(size=np.arange(20)))


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def cifar_files(folder: Path) -> None:
    """Both sets in their own format, a few images each, as Python 2 wrote them."""

    def write(path: Path, count: int, keys: dict[str, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = np.stack([picture(seed, seed % 2 == 0, 32) for seed in range(count)])
        batch = {b"data": images.transpose(0, 3, 1, 2).reshape(count, -1), b"batch_label": b"a batch"}
        batch |= {key.encode(): [place % classes for place in range(count)] for key, classes in keys.items()}
        path.write_bytes(pickle.dumps(batch, protocol=2))

    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        write(folder / "cifar-10-batches-py" / name, 8, {"labels": 2})
    for name, count in (("train", 40), ("test", 10)):
        write(folder / "cifar-100-python" / name, count, {"fine_labels": 4, "coarse_labels": 2})


def test_cifar_is_read_from_its_own_files(tmp_path, monkeypatch) -> None:
    cifar_files(tmp_path)
    table = cifar10(str(tmp_path))
    assert table["split"].value_counts().to_dict() == {"train": 36, "validation": 4, "test": 8}
    assert (table["image"][9] == picture(1, False, 32)).all() and table["class"][9] == 1
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    assert list(cifar100(rows=20)) == ["image", "class", "superclass", "split"] and len(cifar100(rows=20)) == 30
    with pytest.raises(DataError, match="cifar-10-batches-py: no such folder.*POLYSHOT_DATA"):
        cifar10(str(tmp_path / "elsewhere"))


def test_a_file_of_cifar_s_runs_nothing(tmp_path) -> None:
    cifar_files(tmp_path)

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was-run",)

    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps({b"data": Harmful()}))
    with pytest.raises(DataError, match="is not a file of CIFAR's"):
        cifar100(str(tmp_path))
    assert not (tmp_path / "was-run").exists()


# --- torchvision -----------------------------------------------------------------------------------------------------


def resnet(values: dict | None = None, size: int = 32):
    study = study_of(
        {"model.encoder": {"kind": "torchvision", **(values or {})}, "data.images": {"image": {"size": size}}}
    )
    table = pd.DataFrame({"image": [picture(seed, seed % 2 == 0) for seed in range(12)], "class": ["a", "b"] * 6})
    prepared = prepare(study, table)
    return build_model(study, prepared.inputs, prepared.targets).sharing.encoder, prepared.train.features


def test_a_resnet_for_small_images_does_not_shrink_them_at_its_beginning() -> None:
    encoder, rows = resnet()
    assert encoder.outputs == 512 and encoder.network.conv1.stride == (1, 1)
    assert encoder.eval()(rows[:2]).shape == (2, 512)
    assert len(encoder.layers) == 6  # the first convolution, its normalisation, and four groups of blocks
    assert resnet(size=96)[0].network.conv1.stride == (2, 2)


def test_weights_come_from_a_file_and_nothing_is_run(tmp_path) -> None:
    import torchvision

    torch.manual_seed(3)
    whole = torchvision.models.resnet18(num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    encoder, _ = resnet({"weights": str(tmp_path / "weights.pt"), "small_images": False})
    assert torch.equal(encoder.network.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    with pytest.raises(RunError, match=r"'conv1\.weight' is of shape .*set small_images"):
        resnet({"weights": str(tmp_path / "weights.pt")})
    with pytest.raises(RunError, match="is another model's"):
        resnet({"weights": str(tmp_path / "weights.pt"), "model": "resnet50"})
    torch.save(whole, tmp_path / "pickled.pt")
    with pytest.raises(RunError, match="holds no weights that can be read safely"):
        resnet({"weights": str(tmp_path / "pickled.pt")})
    with pytest.raises(StudyError, match="no model 'resnet19'.*Did you mean 'resnet1"):
        resnet({"model": "resnet19"})


# --- several kinds of columns ----------------------------------------------------------------------------------------


def test_numbers_text_and_images_of_one_table_are_read_together(tmp_path) -> None:
    pytest.importorskip("transformers")
    encoder = tiny_transformer(tmp_path / "encoder")
    table = requests(120)
    random = np.random.default_rng(0)
    is_day, number = random.random(120) < 0.5, random.normal(size=120)
    table["image"] = [picture(seed, bool(day)) for seed, day in enumerate(is_day)]
    table["number"] = number
    # Nothing but all three tells it.
    table["sum"] = number + 2.0 * is_day + 2.0 * (table["intent"] == "travel")
    study = Study.from_dict(
        {
            "name": "mixed",
            "data": {
                "source": "made-here.csv",
                "columns": {"words": "text", "image": "image"},
                "images": {"image": {"size": 8}},
                "ignore": ["length", "intent"],
            },
            "tasks": {"sum": {"kind": "regression"}, "slots": {"kind": "tokens", "words": "words"}},
            "model": {
                "encoder": {
                    "kind": "mixed",
                    "text": {"model": str(encoder), "max_tokens": 12, "learning_rate_factor": 0.5},
                    "image": {"kind": "cnn", "width": 4, "layers": 2},
                    "fusion": {"width": 32, "depth": 1},
                }
            },
            "training": {"epochs": 25, "batch_size": 16, "optimiser": {"learning_rate": 1e-2}, "early_stopping": None},
            "scale": {"device": "cpu"},
        }
    )
    prepared = prepare(study, table)
    run = trained(study, prepared)
    metrics = run.evaluate(prepared.test)
    assert metrics["sum/r2"] > 0.8 and metrics["slots/f1"] > 0.8

    save_model(tmp_path / "model", study, prepared, run)
    rows = table[:5]
    loaded = SavedModel.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.predict(rows)["sum"],
        SavedModel(study, run.model, prepared.features, prepared.targets).predict(rows)["sum"],
        rtol=1e-4,
    )

    reading = prepared.features.labelling({})  # for tasks of rows
    hidden = HiddenLayers(reading.layout, study.model.encoder.model_dump(mode="json"), [1, 2, 3])
    hidden.load(run.model.sharing.encoder.state_dict())
    inputs = torch.from_numpy(reading.transform(rows))
    with torch.no_grad():
        text, image, fused = hidden(inputs).split(hidden.widths, 1)
        torch.testing.assert_close(fused, hidden.encoder(inputs))
    assert hidden.widths == [16, 8, 32] and len(text) == len(image) == 5


# --- hidden layers ---------------------------------------------------------------------------------------------------


def test_hidden_layers_of_images_are_means_over_pixels(tmp_path, monkeypatch) -> None:
    """In the order of the rows, of which the encoder reads only some at a time."""
    pictures(tmp_path / "pictures", 20)
    study = in_folder(study_of(), tmp_path)
    prepared = prepare(study)
    rows = prepared.train.features
    encoder = build_model(study, prepared.inputs, prepared.targets).sharing.encoder.eval()
    hidden = HiddenLayers(prepared.inputs, study.model.encoder.model_dump(mode="json"), [1, 2])
    hidden.load(encoder.state_dict())
    monkeypatch.setattr(ImageEncoder, "rows_at_once", 5)
    with torch.no_grad():
        first = encoder.network[0](encoder._prepared(*next(prepared.inputs.images_of(rows))))
        expected = torch.cat([first.mean((2, 3)), encoder(rows)], 1)
        torch.testing.assert_close(hidden(rows), expected)


# --- examples --------------------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "model.encoder": {"kind": "cnn", "width": 4, "layers": 2},
    "training.epochs": 1,
    "training.precision": "float32",
    "training.optimiser.learning_rate": 0.01,
}


def test_the_cifar_examples_learn_each_set_and_both_together(tmp_path, monkeypatch) -> None:
    cifar_files(tmp_path)
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    for name in ("source", "joint"):
        study = Study.load(EXAMPLES / "cifar" / f"{name}.yaml")
        assert study.model.image is not None and study.model.image.kind == "torchvision"
        prepared = prepare(study.with_values(SMALL))
        assert prepared.features.columns == ["image"]
        run = trained(study.with_values(SMALL), prepared)
        assert len(run.history) == 1
    assert [len(own) for own in (prepared.train, prepared.validation, prepared.test)] == [36 + 36, 4 + 4, 8 + 10]
    assert prepared.train.mask.sum(0).tolist() == [36, 36]  # each has labels of its own set


def test_the_cifar_examples_train_their_resnet(tmp_path, monkeypatch) -> None:
    """Nothing of them is changed but how long they train, and on how many images."""
    cifar_files(tmp_path)
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    short = {"training.epochs": 1, "data.arguments": {"rows": 4}, "scale.device": "cpu"}
    study = Study.load(EXAMPLES / "cifar" / "source.yaml").with_values(short)
    run = trained(study, prepare(study))
    encoder = run.model.sharing.encoder
    assert sum(value.numel() for value in encoder.parameters()) == 11_168_832  # a ResNet-18 of 3 × 3 at its beginning
    assert math.isfinite(run.history[0].metrics["train/loss"])


def test_the_cifar_example_moves_an_encoder(tmp_path, monkeypatch) -> None:
    cifar_files(tmp_path)
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    study = Study.load(EXAMPLES / "cifar" / "source.yaml").with_values(SMALL)
    prepared = prepare(study)
    run = trained(study, prepared)
    source = Source("there", SavedModel(study, run.model.eval(), prepared.features, prepared.targets), study)
    example = Study.load(EXAMPLES / "cifar" / "study.yaml")
    assert {"fine_tuning", "gently", "linear_probe", "l2_sp", "knn"} == set(example.transfer.methods)
    target = TargetData.of(example.with_values(SMALL | {"transfer.budgets": [2], "transfer.seeds": 1}))
    for trial in trials_of(target, Sources(source)):
        outcome = trial.outcome(tmp_path / "transfers")
        assert outcome.labels == 2 * 4 and outcome.metrics["test"]["fine/accuracy"] >= 0


def test_the_banking77_example_draws_shots_or_says_where_its_files_are(tmp_path, monkeypatch) -> None:
    study = Study.load(EXAMPLES / "banking77" / "study.yaml")
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="Banking77 is not there: set POLYSHOT_DATA"):
        read_tables(study)
    (tmp_path / "banking77").mkdir()
    for part, count in (("train", 20), ("test", 5)):
        rows = [(f"{part} {number} of {intent}", intent) for intent in ("card_lost", "PIN") for number in range(count)]
        pd.DataFrame(rows, columns=["text", "category"]).to_csv(tmp_path / "banking77" / f"{part}.csv", index=False)
    tables = [
        read_tables(study.with_values({"data.arguments": {"shots": 3, "draw": draw}})).rows.groupby("split")
        for draw in (0, 0, 1)
    ]
    train, again, other = (set(table.get_group("train")["text"]) for table in tables)
    assert train == again != other
    assert len(train) == 3 * 2 + 2 and {"card lost", "pin"} < train  # the names of intents are sentences as well
    assert set(tables[0].get_group("validation")["text"]) < train  # nothing else is learnt from
    assert len(tables[0].get_group("test")) == 10


def test_the_snips_example_reads_its_files_or_says_where_they_are(tmp_path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    tiny = tiny_transformer(tmp_path / "encoder")
    study = Study.load(EXAMPLES / "snips" / "study.yaml").with_values({"model.encoder.model": str(tiny)})
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="SNIPS is not there: set POLYSHOT_DATA"):
        prepare(study)
    for seed, (name, count) in enumerate({"train": 60, "dev": 10, "test": 10}.items()):
        rows, folder = requests(count, seed), tmp_path / "snips" / name
        folder.mkdir(parents=True)
        for file, column in (("seq.in", "words"), ("seq.out", "slots"), ("label", "intent")):
            (folder / file).write_text("".join(f"{text} \n" for text in rows[column]))
    prepared = prepare(study.with_values({"tasks.intent": {"kind": "binary"}}))
    assert [len(own) for own in (prepared.train, prepared.validation, prepared.test)] == [60, 10, 10]
    assert [target.task for target in prepared.targets] == ["intent", "slots"]
