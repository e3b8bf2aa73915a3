"""Population-based training: on the way, the worst trials copy the best ones and go on with other values.

Ray Tune's schedulers decide who copies whom, and when. What they lack is here: that values of any search space are
changed by its parameters and within their ranges, that a trial which copies keeps its number, that the same seed gives
the same search, and that nobody waits for a trial that has ended.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from polyshot.errors import Problem, StudyError
from polyshot.searching.protocol import CURRENT, RESOURCE
from polyshot.searching.space import TrialValues, build_space, probes
from polyshot.seeds import derive_seed
from polyshot.study import Study

# Keys of a trial's config: Optuna's parameters by name; and for PB2 their places in their ranges, from 0 to 1.
PARAMETERS, PLACES = "parameters", "places"

Parameters = Mapping[str, BaseDistribution]


def build_population(study: Study, direction: str, interval: int, age: int = 0) -> PopulationBasedTraining:
    """The study's scheduler, `pbt` or `pb2`.

    Args:
        direction: "maximize" or "minimize".
        interval: epochs between two exchanges.
        age: the epochs of the oldest of its trials, where an earlier process began them.

    Raises:
        StudyError: as `population_parameters`.
    """
    parameters, space = population_parameters(study), build_space(study)
    settings: dict[str, Any] = {
        "time_attr": RESOURCE,
        "metric": CURRENT,
        "mode": "max" if direction == "maximize" else "min",
        "perturbation_interval": interval,
        "log_config": False,
        "synch": True,  # compared are trials of equal age, and a copy is as old as the trial was
    }
    kind: type[_Population] = _Population
    if study.search.scheduler == "pb2":
        kind, read = _Bandits, _from_places
        settings["hyperparam_bounds"] = {PLACES: {name: [0.0, 1.0] for name in parameters}}
    else:
        read = _within_ranges
        settings["hyperparam_mutations"] = {PARAMETERS: {name: _mutation(each) for name, each in parameters.items()}}
    population = kind(custom_explore_fn=partial(_with_values, parameters, space, read), **settings)
    population.prepare(study.seed, parameters, age)
    return population


def population_parameters(study: Study) -> dict[str, BaseDistribution]:
    """The parameters of the study's space, which every trial of a population must have.

    Raises:
        StudyError: where only some trials have a parameter; for `pb2`, where one is no number.
    """
    space = build_space(study)
    found: dict[str, BaseDistribution] = {}
    for trial in probes(study):
        space(trial)
        found = found or dict(trial.distributions)
        if other := set(found.items()) ^ set(trial.distributions.items()):
            name, _ = min(other, key=lambda item: item[0])
            message = (
                f"the parameter '{name}' is not the same in all trials, between which a population's values change; "
                "take it out of the space, or use the scheduler 'asha'"
            )
            raise StudyError([Problem("search.spaces", message)])
    if study.search.scheduler == "pb2":
        for name, distribution in found.items():
            if isinstance(distribution, CategoricalDistribution):
                message = f"the scheduler 'pb2' searches numbers, and '{name}' is a choice; use 'pbt'"
                raise StudyError([Problem("search.spaces", message)])
    return found


class _Population(PopulationBasedTraining):
    """Population-based training (Jaderberg et al. 2017): values times 0.8 or 1.2, and one in four drawn anew."""

    def prepare(self, seed: int, parameters: Parameters, age: int) -> None:
        self._seed = seed
        self._parameters = parameters
        # The younger ones of an earlier process catch up first.
        self._next_perturbation_sync = (age // self._perturbation_interval + 1) * self._perturbation_interval

    def on_trial_add(self, controller: Any, trial: Trial) -> None:  # noqa: ARG002
        # Tune refuses searchers, which would learn from values that change. Ours only draws the first ones.
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # type: ignore[arg-type]

    def on_trial_result(self, controller: Any, trial: Trial, result: dict) -> str:
        with _seeded(derive_seed(self._seed, "population", result.get(RESOURCE, 0))):
            return super().on_trial_result(controller, trial, result)

    def choose_trial_to_run(self, controller: Any) -> Trial | None:
        trial = super().choose_trial_to_run(controller)
        alive = controller.get_live_trials()
        if trial is None and alive and all(other.status == Trial.PAUSED for other in alive):
            # They waited for one that has ended since: as if the last of them had reported now.
            last = self._trial_state[alive[-1]]
            self.on_trial_result(controller, alive[-1], last.last_result)  # type: ignore[arg-type]
            self._next_perturbation_sync = last.last_train_time + self._perturbation_interval
            trial = super().choose_trial_to_run(controller)
        return trial

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return config | {"number": trial.config["number"]}, operations


class _Bandits(_Population, PB2):
    """Population-based bandits (Parker-Holder, Nguyen, Roberts 2020): values by a Gaussian process over what was gained
    so far, on places in their ranges, so that a logarithmic range is one to it as well.
    """

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        known = trial.config[PARAMETERS]
        trial.config[PLACES] = {name: _place(each, known[name]) for name, each in self._parameters.items()}
        super().on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Trial, result: dict) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, on kernels fitted to few points
            return super().on_trial_result(controller, trial, result)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The random numbers of Python and NumPy, which Tune's schedulers draw from, are those of `seed` inside only."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# --- values ----------------------------------------------------------------------------------------------------------


def _with_values(
    parameters: Parameters,
    space: TrialValues,
    read: Callable[[Parameters, dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
) -> dict[str, Any]:
    """The config of a trial whose parameters were changed, with the values that they make."""
    found = read(parameters, config)
    return config | {PARAMETERS: found, "values": space(optuna.trial.FixedTrial(found))}  # type: ignore[arg-type]


def _within_ranges(parameters: Parameters, config: dict[str, Any]) -> dict[str, Any]:
    return {name: _held(parameters[name], value) for name, value in config[PARAMETERS].items()}


def _from_places(parameters: Parameters, config: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(parameters[name], place) for name, place in config[PLACES].items()}


def _mutation(distribution: BaseDistribution) -> list[Any] | Callable[[], Any]:
    """As Tune's PBT takes it: choices, of which it goes to a neighbour; or how a number is drawn anew."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return lambda: _value(distribution, random.random())


def _value(distribution: BaseDistribution, place: float) -> float | int:
    """The number at `place`, from 0 to 1, of a range."""
    low, high = _ends(distribution)
    value = low + float(place) * (high - low)
    return _held(distribution, math.exp(value) if _is_log(distribution) else value)


def _place(distribution: BaseDistribution, value: float) -> float:
    """The inverse of `_value`."""
    low, high = _ends(distribution)
    own = math.log(value) if _is_log(distribution) else value
    return (own - low) / (high - low) if high > low else 0.0


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    ends = (distribution.low, distribution.high)
    return (math.log(ends[0]), math.log(ends[1])) if distribution.log else ends


def _is_log(distribution: BaseDistribution) -> bool:
    return bool(getattr(distribution, "log", False))


def _held(distribution: BaseDistribution, value: Any) -> Any:
    """The nearest value that the distribution has."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return value
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)
