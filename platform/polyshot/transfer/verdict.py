"""Did transfer help? Each method against training from scratch: on the same test rows, the same labels, the same seeds.

Every difference has two sources of chance, and its interval knows both. Other test rows would have given another one:
a paired bootstrap over rows (whole groups, where the study has them) of the difference between the methods' metrics,
each averaged over the repetitions. Other labelled rows, weights and batches would have, too: the variance between
repetitions. Their sum is the difference's variance, and its degrees of freedom are by Satterthwaite, "An Approximate
Distribution of Estimates of Variance Components" (1946), so that three repetitions that disagree are not taken for
many. With one repetition the interval is about the rows alone.

The verdict is by the two-sided t-test, corrected for the number of methods that are compared at one budget (Holm, "A
Simple Sequentially Rejective Multiple Test Procedure", 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.prepare import Prepared
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study.transfer import SCRATCH
from polyshot.training.bootstrap import CONFIDENCE, RESAMPLES, Verdict, draws
from polyshot.training.improvement import relative_improvement
from polyshot.training.loop import Epoch
from polyshot.training.metrics import LOWER_IS_BETTER, as_judged
from polyshot.training.weighted_metrics import weighted_metric
from polyshot.transfer.problem import Budget
from polyshot.transfer.trials import Outcome

WITHIN = 0.05  # a curve has converged where it is so near to its final metric, as a fraction of that


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions, and what is known of its error.

    Attributes:
        error: standard error; NaN where the metric is undefined on too many resamples.
        freedom: degrees of freedom.
    """

    value: float
    error: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import t

        half = self.error * float(t.ppf((1 + CONFIDENCE) / 2, self.freedom))
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float:
        """Of the two-sided test that the true value is zero."""
        from scipy.stats import t

        if self.error == 0:
            return float(self.value == 0)
        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))


def estimate(of_repetitions: NDArray[np.float64], resamples: NDArray[np.float64], rows: int) -> Estimate:
    """
    Args:
        of_repetitions: [S], the value in each repetition.
        resamples: [R], the mean over repetitions on each resample of the rows.
        rows: or groups, that were drawn from.
    """
    defined = resamples[np.isfinite(resamples)]
    if len(defined) < 0.9 * len(resamples) or not np.isfinite(of_repetitions).all():
        return Estimate(float(of_repetitions.mean()), math.nan, math.nan)
    repetitions = len(of_repetitions)
    by_rows, freedom_of_rows = float(defined.var(ddof=1)), max(1, rows - 1)
    by_seeds = float(of_repetitions.var(ddof=1)) / repetitions if repetitions > 1 else 0.0
    variance = by_rows + by_seeds
    squares = by_rows**2 / freedom_of_rows + (by_seeds**2 / (repetitions - 1) if repetitions > 1 else 0.0)
    freedom = variance**2 / squares if squares > 0 else math.inf
    return Estimate(float(of_repetitions.mean()), math.sqrt(variance), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, such that each below α is significant with a family-wise error of α; NaN stays NaN."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def verdict_of(difference: float, p_value: float) -> Verdict:
    if math.isnan(p_value):
        return "unknown"
    if p_value >= 1 - CONFIDENCE:
        return "within noise"
    return "helped" if difference > 0 else "hurt"


# --- the table -------------------------------------------------------------------------------------------------------


def comparison(study: Study, folds: Sequence[Prepared], outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One row per budget, task and method, those from scratch first.

    Args:
        folds: the target's rows as each fold of a cross-validation splits them, or as the only split does. Metrics are
            means over folds, and a repetition is all of them.

    Columns: budget; labels (rows that had one); task; method; metric; value (on test, the mean over repetitions) and
    its 95 % interval low, high; difference from scratch (positive: better) and its interval difference_low,
    difference_high; p (Holm-adjusted) and verdict; scratch_labels, the labels with which training from scratch gets as
    far, and is_more (than so many: it did not get there) or is_fewer; steps until the validation metric is within 5 %
    of its final value; validation (the metric there); improvement (on validation, relative to scratch); seconds of a
    training.
    """
    by_budget: dict[Budget, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        by_budget.setdefault(outcome.budget, {}).setdefault(outcome.method, []).append(outcome)
    rows = []
    for budget, methods in by_budget.items():
        for task in study.tasks:
            rows += _rows_of_task(study, folds, budget, methods, task)
    table = pd.DataFrame(rows)
    for task in study.tasks:
        own = table["task"] == task
        table.loc[own, ["scratch_labels", "is_more", "is_fewer"]] = _efficiency(table[own]).to_numpy()
    return table


def _rows_of_task(
    study: Study, folds: Sequence[Prepared], budget: Budget, methods: Mapping[str, Sequence[Outcome]], task: str
) -> list[dict[str, object]]:
    metric, place = study.tasks[task].metric, list(study.tasks).index(task)
    name = f"val/{task}/{metric}"
    sign = -1 if metric in LOWER_IS_BETTER else 1
    resampled, units = _resampled(study, folds, budget, methods, place)
    rows = []
    for method, outcomes in methods.items():
        values, scratch = (_of(found, "test", task, metric) for found in (outcomes, methods[SCRATCH]))
        validation, alone = (_of(found, "validation", task, metric) for found in (outcomes, methods[SCRATCH]))
        own = estimate(values, resampled[method], units)
        difference = estimate(sign * (values - scratch), sign * (resampled[method] - resampled[SCRATCH]), units)
        rows.append(
            {
                "budget": str(budget),
                "labels": outcomes[0].labels,
                "task": task,
                "method": method,
                "metric": metric,
                "value": own.value,
                "low": own.interval[0],
                "high": own.interval[1],
                "difference": difference.value,
                "difference_low": difference.interval[0],
                "difference_high": difference.interval[1],
                "p": difference.p_value,
                "steps": float(np.mean([found.steps * epochs_to_converge(found.history, name) for found in outcomes])),
                "validation": float(validation.mean()),
                "improvement": float(
                    np.mean([relative_improvement(metric, v, a) for v, a in zip(validation, alone, strict=True)])
                ),
                "seconds": float(np.mean([found.seconds for found in outcomes])),
            }
        )
    for row, p in zip(rows[1:], holm([float(row["p"]) for row in rows[1:]]), strict=True):  # type: ignore[arg-type]
        row["p"], row["verdict"] = p, verdict_of(float(row["difference"]), p)  # type: ignore[arg-type]
    rows[0] |= {"p": math.nan, "verdict": None, "difference_low": math.nan, "difference_high": math.nan}
    return rows


def _of(outcomes: Sequence[Outcome], split: str, task: str, metric: str) -> NDArray[np.float64]:
    """The metric of each repetition [S], the mean over its folds."""
    repetitions = sorted({outcome.repetition for outcome in outcomes})
    values = [
        [found.metrics[split][f"{task}/{metric}"] for found in outcomes if found.repetition == repetition]
        for repetition in repetitions
    ]
    return np.array(values, dtype=np.float64).mean(1)


def _resampled(
    study: Study, folds: Sequence[Prepared], budget: Budget, methods: Mapping[str, Sequence[Outcome]], place: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """By method, its metric on resamples of the test rows [R], the mean over repetitions and folds.

    And how many rows, or groups, were drawn from. Each row is in the test of one fold, so that folds are drawn apart.
    """
    found = {method: np.zeros(RESAMPLES) for method in methods}
    units = 0
    for fold, prepared in enumerate(folds):
        own = {method: [one for one in outcomes if one.fold == fold] for method, outcomes in methods.items()}
        of_fold, drawn = _resampled_once(study, prepared, f"{budget}" if fold == 0 else f"{budget}/{fold}", own, place)
        for method, values in of_fold.items():
            found[method] += values / len(folds)
        units += drawn
    return found, units


def _resampled_once(
    study: Study, prepared: Prepared, seed: str, methods: Mapping[str, Sequence[Outcome]], place: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """The same of one split."""
    target, examples = prepared.targets[place], prepared.test
    metric, own = study.tasks[target.task].metric, prepared.labels.columns[place]
    mask = examples.mask[:, own].numpy()
    known = np.asarray(mask.any(1))
    labels = as_judged(target, np.where(mask, examples.targets[:, own].double().numpy(), np.nan)[known])
    groups = prepared.groups.get("test")
    found = {method: np.full(RESAMPLES, np.nan) for method in methods}
    for resamples, counts in draws(len(known), groups, derive_seed(study.seed, "transfer", seed)):
        counts = counts[known]
        for method, outcomes in methods.items():
            each = [
                weighted_metric(target.kind, metric, labels, outcome.predictions["test"][target.task], counts)
                for outcome in outcomes
            ]
            found[method][resamples] = np.mean(each, 0)
    return found, len(known) if groups is None else len(np.unique(groups))


# --- how many labels, how many steps ---------------------------------------------------------------------------------


def epochs_to_converge(history: Sequence[Epoch], name: str) -> int:
    """Epochs until the curve of the metric `name` is within 5 % of its value at the kept epoch, or better."""
    metric = name.rpartition("/")[2]
    best = max((epoch for epoch in history if epoch.is_best), key=lambda epoch: epoch.number)
    return next((epoch for epoch in history if _reaches(epoch, name, metric, best.metrics[name])), best).number


def _reaches(epoch: Epoch, name: str, metric: str, final: float) -> bool:
    short = epoch.metrics[name] - final if metric in LOWER_IS_BETTER else final - epoch.metrics[name]
    return short <= WITHIN * abs(final)


def labels_needed(
    metric: str, value: float, labels: Sequence[float], curve: Sequence[float]
) -> tuple[float, bool, bool]:
    """With how many labels a curve of the metric by labels (ascending) gets to `value`, linear in their logarithm.

    Returns:
        The labels, and whether more than these are needed (the curve does not get there), or perhaps fewer (it begins
        beyond it).
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    heights = [sign * height for height in curve]
    goal = sign * value
    if heights[0] >= goal:
        return labels[0], False, heights[0] > goal
    for place in range(1, len(heights)):
        if heights[place] >= goal:
            share = (goal - heights[place - 1]) / (heights[place] - heights[place - 1])
            low, high = math.log(labels[place - 1]), math.log(labels[place])
            return math.exp(low + share * (high - low)), False, False
    return labels[-1], True, False


def _efficiency(table: pd.DataFrame) -> pd.DataFrame:
    """Of one task's rows: scratch_labels, is_more, is_fewer."""
    scratch = table[table["method"] == SCRATCH].sort_values("labels")
    labels, curve = scratch["labels"].tolist(), scratch["value"].tolist()
    return pd.DataFrame(
        [labels_needed(row["metric"], row["value"], labels, curve) for row in table.to_dict(orient="records")],
        columns=["scratch_labels", "is_more", "is_fewer"],
    )


# --- what to take ----------------------------------------------------------------------------------------------------


def recommended(table: pd.DataFrame, guard: bool) -> dict[str, str]:
    """By budget, the method with the best improvement over scratch on validation, the mean over tasks.

    With `guard`, that is scratch itself where no method is better.
    """
    chosen = {}
    for budget, rows in table.groupby("budget", sort=False):
        means = rows.groupby("method", sort=False)["improvement"].mean().fillna(-math.inf)
        if not guard:
            means = means.drop(SCRATCH)
        chosen[str(budget)] = str(means.idxmax())
    return chosen
