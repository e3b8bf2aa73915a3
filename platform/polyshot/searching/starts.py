"""Where a search starts: points that are known to be good, as parameters of the first trials.

Called before the first trial, and by the verbs when they check the space. A point is given as values by dotted key;
which parameters of Optuna's make them is found by asking the space itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from polyshot.errors import Problem, StudyError
from polyshot.search_spaces.task_weights import shares
from polyshot.searching.protocol import RESULT
from polyshot.searching.space import TrialValues, build_space
from polyshot.study import Study
from polyshot.tracking.query import best_values

DEFAULT, EQUAL_WEIGHTS, MLFLOW = "default", "equal_weights", "mlflow:"


def starts(study: Study, *, with_mlflow: bool = True) -> dict[str, dict[str, Any]]:
    """Optuna's parameters of the first trials, by where each comes from.

    What an earlier search found and this one does not search, or not so far, is left to the sampler.

    Args:
        with_mlflow: also those from MLflow, which takes seconds to load.

    Raises:
        StudyError: for a point that the space cannot give, or an earlier search that is not there.
        TrackingError: when MLflow's store cannot be used.
    """
    space = build_space(study)
    found: dict[str, dict[str, Any]] = {}
    for place, start in enumerate(study.search.start):
        key = f"search.start.{place}"
        if isinstance(start, str) and start.startswith(MLFLOW) and not with_mlflow:
            continue
        values, is_own = _values(study, space, start, key)
        parameters, missed = parameters_of(study, space, values)
        if is_own and missed:
            name, value = next(iter(missed.items()))
            message = f"the search has no trial with {name} = {value!r}; widen its space, or leave the key out"
            raise StudyError([Problem(key, message)])
        if parameters:
            found[start if isinstance(start, str) else f"point {place}"] = parameters
    return found


def parameters_of(study: Study, space: TrialValues, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters with which `space` gives `values`, as far as it can, and those of `values` that it does not give.

    Parameters are known by name: a dotted key, `log2(key)`, or the shares that make task weights. Which ones a
    conditional space asks for is seen once those before are settled.
    """
    values = _on_simplex(study, values)
    wishes = dict(values) | _shares(study, values)
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=study.seed))
    settled: dict[str, Any] = {}
    while True:
        probe.enqueue_trial(settled)
        trial = probe.ask()
        given = space(trial)
        more = {}
        for name, distribution in trial.distributions.items():
            wish = _wish(name, wishes)
            if name not in settled and wish is not None and _holds(distribution, wish):
                more[name] = wish
        if not more:
            break
        settled |= more
    given = _on_simplex(study, given)
    missed = {key: value for key, value in values.items() if key not in given or not _same(given[key], value)}
    return settled, missed


def _values(study: Study, space: TrialValues, start: Any, key: str) -> tuple[dict[str, Any], bool]:
    """The values of a start, and whether the space must give them all."""
    if not isinstance(start, str):
        return start, True
    if start == EQUAL_WEIGHTS:
        return {f"tasks.{task}.weight": 1 / len(study.tasks) for task in study.tasks}, True
    if start == DEFAULT:
        own = study.flat()
        return {name: own[name] for name in space(optuna.create_study().ask()) if own.get(name) is not None}, False
    if start.startswith(MLFLOW):
        return best_values(study, start.removeprefix(MLFLOW), key), False
    folder = study.folder / Path(start).expanduser()
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))["best_values"], False
    except (OSError, ValueError, KeyError):
        message = (
            f"'{start}' is no folder of a search that has ended; name one, or {DEFAULT}, {EQUAL_WEIGHTS}, "
            f"{MLFLOW}EXPERIMENT or a point"
        )
        raise StudyError([Problem(key, message)]) from None


def _weight_keys(study: Study) -> dict[str, str]:
    return {task: f"tasks.{task}.weight" for task in study.tasks}


def _on_simplex(study: Study, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with all task weights where there is any, and their sum 1."""
    keys = _weight_keys(study)
    if not set(keys.values()) & set(values):
        return dict(values)
    weights = {key: values.get(key, study.tasks[task].weight) for task, key in keys.items()}
    total = sum(weights.values()) or 1.0
    return dict(values) | {key: weight / total for key, weight in weights.items()}


def _shares(study: Study, values: Mapping[str, Any]) -> dict[str, Any]:
    keys = _weight_keys(study)
    is_given = len(keys) > 1 and set(keys.values()) <= set(values)
    return shares({task: values[key] for task, key in keys.items()}) if is_given else {}


def _wish(name: str, wishes: Mapping[str, Any]) -> Any:
    if name in wishes:
        return wishes[name]
    value = wishes.get(name.removeprefix("log2(").removesuffix(")"))
    if value is None or not name.startswith("log2("):
        return None
    power = math.log2(value)
    return round(power) if power == round(power) else power


def _holds(distribution: optuna.distributions.BaseDistribution, wish: Any) -> bool:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return wish in distribution.choices
    if isinstance(wish, bool) or not isinstance(wish, int | float):
        return False
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]  # both kinds of numbers have them
    is_whole = isinstance(distribution, optuna.distributions.IntDistribution)
    return low <= wish <= high and (not is_whole or wish == round(wish))


def _same(given: Any, value: Any) -> bool:
    if isinstance(given, float) and isinstance(value, int | float):
        return math.isclose(given, value, rel_tol=1e-6, abs_tol=1e-9)
    return bool(given == value)
