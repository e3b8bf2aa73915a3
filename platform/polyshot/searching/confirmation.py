"""Is the best trial better than the study's own values, or was it lucky? The best few, again with new seeds.

Called by `polyshot search` when its trials have ended. The values that a search returns were the best of many on the
same validation rows with one seed, so that their objective flatters them. Here the best few trials and the study's own
values are trained with the same new seeds; which trial is chosen is decided by the means over these, and the verdict is
from differences of the same seed, on test rows that chose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from polyshot.results import t_interval
from polyshot.searching.objective import Objective, is_lower_better
from polyshot.searching.ranking import is_feasible, ranked
from polyshot.searching.searcher import VALUES, was_stopped
from polyshot.study import Study

DEFAULT = "default"  # what the study's own values are called beside numbers of trials


@dataclass(frozen=True)
class Rerun:
    """One training of a candidate with one new seed.

    Attributes:
        candidate: the number of a trial, or `default`.
        metrics: by split, as `Objective.values` takes them.
    """

    candidate: str
    seed: int
    metrics: Mapping[str, Mapping[str, float]]


def points(study: Study, trials: Sequence[FrozenTrial]) -> list[tuple[str, dict[str, Any]]]:
    """What is trained again: a candidate and its values, seed by seed, so that an early end leaves whole seeds.

    Args:
        trials: the best ones of the search, the best first.
    """
    confirm = study.search.confirm
    assert confirm is not None
    whole = [trial for trial in trials if not was_stopped(trial) and is_feasible(trial)]
    candidates: dict[str, dict[str, Any]] = {DEFAULT: {}}
    candidates |= {str(trial.number): trial.user_attrs[VALUES] for trial in whole[: confirm.top]}
    return [
        (name, values | {"seed": study.seed + number})
        for number in range(1, confirm.seeds + 1)
        for name, values in candidates.items()
    ]


def confirmation(objectives: Mapping[str, Objective], reruns: Sequence[Rerun]) -> pd.DataFrame:
    """One row for each candidate and objective, the best trial first and the study's own values last.

    Columns: candidate, objective, seeds; its mean on `validation`, with the 95 % interval `validation_low` to
    `validation_high` over seeds, and on `test`; `difference`, on test from the study's
    own values (positive: better), the mean over seeds, with its 95 % interval `low` to `high` (Student's t, of the
    differences of the same seed) and the `verdict`: helped, hurt, within noise, or unknown with fewer than two seeds.

    Args:
        objectives: by split, each with the baselines of its own split.
    """
    names = objectives["validation"].names
    seeds = _common_seeds(reruns)
    values = {
        (rerun.candidate, split, rerun.seed): objectives[split].values(rerun.metrics[split])
        for rerun in reruns
        for split in objectives
    }

    def of(candidate: str, split: str) -> np.ndarray:
        """[S, K]."""
        return np.array([values[candidate, split, seed] for seed in seeds]).reshape(len(seeds), len(names))

    rows = []
    for candidate in [*order(objectives["validation"], reruns), DEFAULT]:
        differences = of(candidate, "test") - of(DEFAULT, "test")
        for place, name in enumerate(names):
            on_validation = of(candidate, "validation")[:, place]
            over_seeds = t_interval(on_validation)
            row = {
                "candidate": candidate,
                "objective": name,
                "seeds": len(seeds),
                "validation": _mean(on_validation),
                "validation_low": over_seeds.low,
                "validation_high": over_seeds.high,
                "test": _mean(of(candidate, "test")[:, place]),
            }
            if candidate != DEFAULT:
                gains = differences[:, place] * (-1 if is_lower_better(name) else 1)
                interval = t_interval(gains)
                row |= {"difference": _mean(gains), "low": interval.low, "high": interval.high}
                row["verdict"] = interval.verdict
            rows.append(row)
    return pd.DataFrame(rows)


def order(objective: Objective, reruns: Sequence[Rerun]) -> list[str]:
    """The trials among the candidates, the best first by means over seeds on validation; as `ranking.ranked`."""
    seeds = _common_seeds(reruns)
    means = []
    for candidate in dict.fromkeys(rerun.candidate for rerun in reruns if rerun.candidate != DEFAULT):
        own = [rerun.metrics["validation"] for rerun in reruns if rerun.candidate == candidate and rerun.seed in seeds]
        if not own:
            continue
        mean = optuna.trial.create_trial(values=np.mean([objective.values(each) for each in own], axis=0).tolist())
        mean.number = int(candidate)
        for bound, violations in pd.DataFrame([objective.violations(each) for each in own]).items():
            mean.set_constraint(str(bound), float(violations.mean()))
        means.append(mean)
    return [str(trial.number) for trial in ranked(means, objective)]


def chosen_words(table: pd.DataFrame) -> str:
    """How the best trial was chosen."""
    if table["candidate"].iloc[0] == DEFAULT:
        return "the best on validation; too little time was left to try it with new seeds"
    return f"the best on validation by means over {table['seeds'].iloc[0]} new seeds"


def words(table: pd.DataFrame) -> list[str]:
    """What the confirmation says of the best trial, a sentence for each objective."""
    best = table[table["candidate"] == table["candidate"].iloc[0]]
    return list(_sentences(best)) if len(table) and best["candidate"].iloc[0] != DEFAULT else []


def _sentences(best: pd.DataFrame) -> Iterator[str]:
    judged = {
        "helped": "better than the study's own values",
        "hurt": "worse than the study's own values",
        "within noise": "no different from the study's own values beyond noise",
        "unknown": "not to be told from the study's own values with so few seeds",
    }
    for row in best.to_dict(orient="records"):
        interval = "" if math.isnan(row["low"]) else f", 95 % interval {row['low']:+.4g} to {row['high']:+.4g}"
        yield (
            f"with {row['seeds']} new seeds trial {row['candidate']} is {judged[row['verdict']]} in {row['objective']} "
            f"on test (difference {row['difference']:+.4g}{interval})"
        )


def _common_seeds(reruns: Sequence[Rerun]) -> list[int]:
    """The seeds that every candidate was trained with."""
    by_candidate: dict[str, set[int]] = {}
    for rerun in reruns:
        by_candidate.setdefault(rerun.candidate, set()).add(rerun.seed)
    return sorted(set.intersection(*by_candidate.values())) if by_candidate else []


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
