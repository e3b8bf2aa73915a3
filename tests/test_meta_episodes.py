"""Episodes: what a task is made of, that splits never leak, and that draws depend on the generator alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from polyshot.errors import DataError, StudyError
from polyshot.meta.episodes import Classes, Groups, Sinusoids, build_source
from polyshot.meta.episodes.base import EpisodeSource, Split
from polyshot.meta.episodes.distortion import distorted
from polyshot.meta.episodes.omniglot import omniglot
from polyshot.study import Study
from polyshot.study.meta import ClassEpisodes, Distortion
from polyshot.training.world import World

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered_pictures(classes: int = 30, rows: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures [R, 1, 3, 3] whose pixels say their class (top left), their row (middle) and which way is up."""
    labels = np.repeat(np.arange(classes), rows)
    pictures = torch.zeros(len(labels), 1, 3, 3)
    pictures[:, 0, 0, 0] = torch.from_numpy(labels) + 1.0
    pictures[:, 0, 1, 1] = torch.arange(len(labels)) + 1.0
    return pictures, labels


def classes(**options) -> Classes:
    settings = {"kind": "classes", "source": "omniglot", "ways": 4, "shots": 2, "query": 3, "test_query": 1}
    return Classes(*numbered_pictures(), ClassEpisodes.model_validate(settings | options))


def school_table(schools: int = 24, missing: float = 0.1) -> pd.DataFrame:
    random = np.random.default_rng(0)
    sizes = random.integers(4, 15, schools)
    school = np.repeat([f"school {number}" for number in range(schools)], sizes)
    slope = np.repeat(random.normal(1, 1, schools), sizes)
    hours = random.normal(0, 1, len(school))
    score = 50 + 10 * slope * hours + random.normal(0, 1, len(school))
    score[random.random(len(school)) < missing] = np.nan
    return pd.DataFrame({"school": school, "hours": hours, "score": score, "passed": np.where(hours > 0, "yes", "no")})


def school_study(**values) -> Study:
    return Study.from_dict(
        {
            "name": "schools",
            "data": {"source": "none.csv", "group": "school"},
            "tasks": {"score": {"kind": "regression"}, "passed": {"kind": "binary"}},
            "meta": {"episodes": {"support": 4, "query": 5}},
        }
    ).with_values(values)


# --- all sources ------------------------------------------------------------------------------------------------------

SOURCES = {
    "sinusoids": lambda: Sinusoids(5, 6, 7),
    "classes": lambda: classes(rotations=True),
    "distorted classes": lambda: classes(distort={"degrees": 10, "stretch": 0.1, "shift": 1}),
    "groups": lambda: build_source(school_study(), school_table()),
}
sources = pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)


@sources
def test_a_draw_is_a_function_of_the_generator(make) -> None:
    source: EpisodeSource = make()
    again, other = source.sample("train", 6, seeded()), source.sample("train", 6, seeded(1))
    for one, same in zip(source.sample("train", 6, seeded()).parts(), again.parts(), strict=True):
        assert one is same is None or torch.equal(one, same)
    assert not torch.equal(again.support, other.support)


@sources
def test_workers_share_one_meta_batch(make) -> None:
    source: EpisodeSource = make()
    whole = source.sample("train", 5, seeded())
    shares = [source.sample("train", 5, seeded(), World(rank, 2).share) for rank in range(2)]
    for part, *parts in zip(whole.parts(), *(share.parts() for share in shares), strict=True):
        assert part is None or torch.equal(part, torch.cat(parts))


@sources
def test_shapes_and_types_are_those_promised(make) -> None:
    source: EpisodeSource = make()
    for split in SPLITS:
        episodes = source.sample(split, 3, seeded())
        assert episodes.support.shape[2:] == source.shape and episodes.support.dtype == torch.float32
        assert episodes.support_labels.dtype == source.objective.label_type
        assert episodes.query.shape[:2] == episodes.query_labels.shape


# --- each source's own ------------------------------------------------------------------------------------------------


def test_waves_are_sines_within_the_papers_ranges() -> None:
    episodes = Sinusoids(20, 30, 40).sample("test", 500, seeded())
    assert episodes.query.shape == (500, 40, 1) and 4.9 < episodes.query.abs().max() <= 5
    amplitudes = episodes.query_labels.abs().max(1).values
    assert 4.8 < amplitudes.max() <= 5 and amplitudes.min() < 0.3
    # y = a sin x + b cos x fits each wave exactly, and b ≤ 0 since the phase is within half a turn.
    x, y = episodes.support.double(), episodes.support_labels.double().unsqueeze(2)
    fit = torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], 2), y).solution
    torch.testing.assert_close(torch.cat([x.sin(), x.cos()], 2) @ fit, y, atol=1e-5, rtol=0)
    assert fit[:, 1].max() < 1e-5


def test_each_way_has_its_shots_and_its_query_and_no_row_twice() -> None:
    source = classes()
    episodes = source.sample("train", 50, seeded())
    assert episodes.support.shape[:2] == (50, 8) and episodes.query.shape[:2] == (50, 12)
    for label in range(4):
        assert ((episodes.support_labels == label).sum(1) == 2).all()
        assert ((episodes.query_labels == label).sum(1) == 3).all()
        of_label = torch.cat(
            [
                part[labels == label].view(50, -1, 9)
                for part, labels in (
                    (episodes.support, episodes.support_labels),
                    (episodes.query, episodes.query_labels),
                )
            ],
            1,
        )
        assert (of_label[:, :, 0] == of_label[:, :1, 0]).all()  # one class
        rows = of_label[:, :, 4].sort(1).values
        assert (rows[:, 1:] > rows[:, :-1]).all()
    classes_of_ways = episodes.support.view(50, 4, 2, 9)[:, :, 0, 0].sort(1).values
    assert (classes_of_ways[:, 1:] > classes_of_ways[:, :-1]).all()


def test_training_tasks_can_have_more_ways() -> None:
    source = classes(train_ways=9)
    assert source.outputs == 4
    assert [int(source.sample(split, 5, seeded()).query_labels.max()) for split in SPLITS] == [8, 3, 3]
    with pytest.raises(DataError, match="lower train_ways"):
        classes(train_ways=31)


@pytest.mark.parametrize("rotations", [False, True])
def test_classes_of_splits_have_nothing_in_common(rotations: bool) -> None:
    source = classes(rotations=rotations, validation=6, test=0.2)
    seen = {}
    for split in SPLITS:
        corners = source.sample(split, 300, seeded()).support.flatten(2)[..., [0, 2, 6, 8]]
        seen[split] = set(corners.amax(2).flatten().int().tolist())
    assert [len(seen[split]) for split in SPLITS] == [18, 6, 6]
    assert set.union(*seen.values()) == set(range(1, 31))


def test_turned_pictures_are_classes_of_their_own() -> None:
    episodes = classes(rotations=True, ways=15).sample("train", 100, seeded())
    corners = episodes.support.flatten(2)[..., [0, 2, 8, 6]]  # clockwise from the top left
    assert (corners.count_nonzero(dim=2) == 1).all()
    turns = corners.argmax(2)
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    identity = corners.amax(2) * 4 + turns
    # One class and one turn for each label, and no two labels alike.
    for task in range(100):
        pairs = set(zip(episodes.support_labels[task].tolist(), identity[task].tolist(), strict=True))
        assert len(pairs) == 15 == len({pair[1] for pair in pairs})


def test_only_training_pictures_are_distorted_each_in_its_own_way() -> None:
    plain, other = classes(), classes(distort={"degrees": 20, "stretch": 0.2, "shift": 0.5})
    for split in SPLITS:
        before, after = plain.sample(split, 20, seeded()), other.sample(split, 20, seeded())
        assert torch.equal(before.query_labels, after.query_labels)
        same = [torch.equal(getattr(before, part), getattr(after, part)) for part in ("support", "query")]
        assert same == ([False, False] if split == "train" else [True, True])
    alike = torch.ones(1, 2, 2, 1, 9, 9)
    numbers = torch.rand(1, 2, 2, 6, generator=seeded()) * 2 - 1
    ways = distorted(alike, numbers, Distortion(degrees=10, stretch=0.1, shift=1)).flatten(0, 2)
    assert len({picture.numpy().tobytes() for picture in ways}) == 4


@pytest.mark.parametrize(
    ("most", "numbers", "expected"),
    [
        ({"shift": 2}, [0, 0, 0, 0, 1, 0], lambda picture: F.pad(picture, (2, -2))),
        ({"shift": 2}, [0, 0, 0, 0, 0, -0.5], lambda picture: F.pad(picture, (0, 0, -1, 1))),
        ({"degrees": 90}, [1, 0, 0, 0, 0, 0], lambda picture: picture.rot90(1, (-2, -1))),
        ({"degrees": 180}, [-1, 0, 0, 0, 0, 0], lambda picture: picture.flip((-2, -1))),
        ({"degrees": 30, "stretch": 0.5, "shift": 3}, [0] * 6, lambda picture: picture),
    ],
)
def test_a_picture_is_distorted_as_the_numbers_say(most, numbers, expected) -> None:
    picture = torch.rand(1, 1, 6, 6, generator=seeded())
    found = distorted(picture, torch.tensor([numbers], dtype=torch.float32), Distortion.model_validate(most))
    torch.testing.assert_close(found, expected(picture), atol=1e-5, rtol=0)


def test_pictures_are_stretched_and_slanted_about_their_middle() -> None:
    bar = torch.zeros(1, 1, 21, 21)
    bar[..., 10] = 1  # upright
    numbers = torch.zeros(3, 6)
    numbers[0, 1], numbers[1, 2], numbers[2, 3] = -1, 1, 1
    wider, lower, slanted = distorted(bar.expand(3, 1, 21, 21), numbers, Distortion(stretch=0.5))[:, 0]
    assert wider[10].sum() == pytest.approx(2, abs=0.1) and wider[10].argmax() == 10
    assert [int(row.count_nonzero()) for row in lower[[0, 10, 20]]] == [0, 1, 0]
    assert slanted[10].argmax() == 10 and {int(slanted[2].argmax()), int(slanted[18].argmax())} == {6, 14}


def test_what_is_no_picture_is_not_distorted() -> None:
    settings = {"kind": "classes", "source": "omniglot", "distort": {"shift": 1}}
    pictures, labels = numbered_pictures()
    with pytest.raises(DataError, match=r"distort: only pictures can be distorted, got inputs of \[9\]"):
        Classes(pictures.flatten(1), labels, ClassEpisodes.model_validate(settings))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 3}, "3 classes"),
        ({"validation": 20, "test": 10}, "none to train on"),
        ({"shots": 5, "query": 2}, "has 6 rows"),
    ],
)
def test_too_few_classes_or_rows_are_named(options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        classes(**options)


def test_omniglot_is_read_from_the_packed_file(tmp_path, monkeypatch) -> None:
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28) % 16
    packed = pixels[:, :, 0::2] << 4 | pixels[:, :, 1::2]
    np.savez(tmp_path / "omniglot28.npz", images4=packed, alphabet=[1, 2], character=[3, 3], split=[0, 1])
    monkeypatch.setenv("POLYSHOT_DATA", str(tmp_path))
    pictures, labels = omniglot()
    assert pictures.shape == (2, 1, 28, 28) and len(set(labels)) == 2
    assert torch.equal(pictures[:, 0], torch.from_numpy(pixels) * 17)


def test_a_task_is_one_group_and_its_query_all_other_rows() -> None:
    table = school_table(missing=0.0)
    source = build_source(school_study(**{"data.features": ["hours"]}), table)
    assert isinstance(source, Groups)
    sizes = table.groupby("school").size()
    episodes = source.sample("test", 200, seeded())
    counts = (episodes.query_mask.sum(1) + 4).tolist()
    assert set(counts) <= set(sizes[sizes > 4]) and len(set(counts)) > 1
    scaled = torch.from_numpy(source.features.transform(table))[:, 0]
    school_of = {round(value, 5): school for value, school in zip(scaled.tolist(), table["school"], strict=True)}
    for task in range(20):
        known = episodes.query[task][episodes.query_mask[task]]
        rows = torch.cat([episodes.support[task], known])[:, 0].tolist()
        assert len({school_of[round(value, 5)] for value in rows}) == 1
        assert len(set(rows)) == len(rows)


def test_rows_without_a_label_and_groups_that_are_too_small_are_left_out() -> None:
    table = school_table(missing=0.3)
    source = build_source(school_study(), table)
    assert any("left out" in note for note in source.notes)
    for split in SPLITS:
        assert torch.isfinite(source.sample(split, 50, seeded()).query_labels).all()
    known = table.dropna(subset=["score"]).groupby("school").size()
    assert sum(source.groups(split) for split in SPLITS) == int((known > 4).sum())


def test_schools_can_be_classified_too() -> None:
    source = build_source(school_study(**{"meta.episodes.task": "passed"}), school_table())
    assert source.outputs == 2
    assert set(source.sample("train", 20, seeded()).support_labels.flatten().tolist()) == {0, 1}


def test_groups_need_a_column_and_rows() -> None:
    with pytest.raises(StudyError, match="data.group"):
        build_source(school_study(**{"data.group": None}), school_table())
    with pytest.raises(DataError, match="meta.episodes.support"):
        build_source(school_study(**{"meta.episodes.support": 50}), school_table())
