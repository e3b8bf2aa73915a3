"""Entities in labels of words: by the counts that seqeval has, alone and on resamples."""

from __future__ import annotations

import numpy as np
import pytest

from polyshot.data.targets import Target
from polyshot.data.words import entity_codes
from polyshot.training.metrics import METRICS, label_codes
from polyshot.training.weighted_metrics import weighted_metric

LABELS = ["O", "B-city", "I-city", "B-food", "I-food"]
TARGET = Target("slots", "tokens", "slots", classes=[*LABELS], words="words", places=7)


def coded(sentences: list[list[str]], padding: float = np.nan) -> np.ndarray:
    codes = np.full((len(sentences), 7), padding)
    for row, labels in zip(codes, sentences, strict=True):
        row[: len(labels)] = label_codes(TARGET)[[LABELS.index(label) for label in labels]]
    return codes


def random_sentences(count: int, seed: int) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [[str(random.choice(LABELS)) for _ in range(random.integers(1, 8))] for _ in range(count)]


def test_a_label_s_code_tells_its_type_and_whether_it_begins() -> None:
    assert entity_codes(["O", "B-city", "I-city", "I-food", "NOUN"]).tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("truth", "decided", "right", "there", "found"),
    [
        ("B-city I-city O", "B-city I-city O", 1, 1, 1),
        ("B-city I-city O", "B-city O O", 0, 1, 1),  # half of an entity is none
        ("B-city I-city", "B-food I-food", 0, 1, 1),  # nor one of another type
        ("B-city B-city", "B-city I-city", 0, 2, 1),  # B- ends what went before
        ("O I-city", "O B-city", 1, 1, 1),  # an entity may begin with I-
        ("B-city I-food", "B-city B-food", 2, 2, 2),  # as where the type changes
        ("O O", "O O", 0, 0, 0),
    ],
)
def test_entities_are_counted_by_hand(truth, decided, right, there, found) -> None:
    from polyshot.training.entities import entity_counts

    assert entity_counts(coded([truth.split()]), coded([decided.split()], 1.0)).tolist() == [[right, there, found]]


def test_the_scores_are_seqeval_s() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    truth = random_sentences(200, 1)
    decided = [
        [own if chance < 0.7 else other for own, other, chance in zip(labels, others * 7, chances, strict=False)]
        for labels, others, chances in zip(
            truth, random_sentences(200, 2), np.random.default_rng(3).random((200, 7)), strict=True
        )
    ]
    found = coded(truth), coded(decided, padding=3.0)  # whatever is decided behind the last word
    for name, reference in (
        ("f1", seqeval.f1_score),
        ("precision", seqeval.precision_score),
        ("recall", seqeval.recall_score),
        ("accuracy", seqeval.accuracy_score),
    ):
        assert METRICS["tokens"][name](*found) == pytest.approx(reference(truth, decided), abs=1e-12), name
        assert 0 < METRICS["tokens"][name](*found) < 1


@pytest.mark.parametrize("metric", METRICS["tokens"])
def test_on_resamples_they_are_those_of_repeated_rows(metric) -> None:
    truth, decided = coded(random_sentences(40, 4)), coded(random_sentences(40, 5), 0.0)
    counts = np.random.default_rng(0).integers(0, 3, (40, 8)).astype(float)
    expected = [METRICS["tokens"][metric](truth.repeat(n, 0), decided.repeat(n, 0)) for n in counts.T.astype(int)]
    np.testing.assert_allclose(weighted_metric("tokens", metric, truth, decided, counts), expected)
