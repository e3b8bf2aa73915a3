"""The search space of a study as one function of an Optuna trial: its named spaces, then its own distributions.

Called by the searcher for every trial, and by `check_space` before anything starts. It never trains anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna

from polyshot.errors import Problem, StudyError
from polyshot.search_spaces import load_space
from polyshot.study import Study
from polyshot.study.search import Choice, Distribution, Range, why_fixed

TrialValues = Callable[[optuna.Trial], dict[str, Any]]

# What a search itself stands on: other values would move it, rename it or change what its trials may use.
_NOT_SEARCHED = ("name", "storage", "scale", "search", "tracking")
_PROBES = 20  # enough to see the branches of a conditional space


def build_space(study: Study) -> TrialValues:
    """The function from a trial to the values that make its study.

    A distribution of `search.space` replaces what a named space says of the same key.

    Raises:
        StudyError: when `search.spaces` names an unknown space.
        RunError: when a user's own space cannot be imported.
    """
    named = [(name, load_space(name, study)) for name in study.search.spaces]
    inline = study.search.space

    def values(trial: optuna.Trial) -> dict[str, Any]:
        own = {key: _suggest(trial, key, distribution) for key, distribution in inline.items()}
        found: dict[str, Any] = {}
        for name, space in named:
            part: object = space(_OwnFirst(trial, own) if own else trial, study)  # type: ignore[arg-type]
            if not isinstance(part, Mapping):
                message = f"the space '{name}' must return a dictionary of dotted keys, it returned {part!r}"
                raise StudyError([Problem("search.spaces", message)])
            found |= part
        return found | own

    return values


def probes(study: Study) -> Iterator[optuna.Trial]:
    """Random trials to try the space with, of which nothing is kept; the same ones each time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=study.seed))
    for _ in range(_PROBES):
        yield probe.ask()


def check_space(study: Study, refusal: Callable[[str], str | None] = lambda _: None) -> None:
    """Try the space with random trials, so that a mistake in it ends the search before it begins.

    Args:
        refusal: says of a dotted key why the search at hand cannot be over it, or None where it can.

    Raises:
        StudyError: for a key that the study does not have or that may not be searched, for a value that does not fit,
            and when nothing is searched.
        RunError: when a user's own space cannot be imported.
    """
    space = build_space(study)
    for trial in probes(study):
        try:
            values = space(trial)
        except StudyError:
            raise
        except Exception as error:  # a user's space may raise anything
            message = f"a space failed with {type(error).__name__}: {error}"
            raise StudyError([Problem("search.spaces", message)]) from error
        if forbidden := [key for key in values if key.partition(".")[0] in _NOT_SEARCHED]:
            raise StudyError([Problem(f"search: {forbidden[0]}", "cannot be searched; remove it from the space")])
        if refused := [Problem(f"search: {key}", why) for key in values if (why := refusal(key))]:
            raise StudyError(refused)
        fixed = [Problem(f"search: {key}", why) for key in values if (why := why_fixed(key))]
        if fixed and study.search.is_population:
            raise StudyError(fixed)
        try:
            study.with_values(values)
        except StudyError as error:
            raise StudyError(
                Problem(f"search space: {problem.place}", problem.message) for problem in error.problems
            ) from None
        if not trial.params:
            message = "nothing is searched: one task has no weights to search; name another space or a distribution"
            raise StudyError([Problem("search.spaces", message)])


class _OwnFirst:
    """A trial whose parameters of the study's own distributions are settled: a space that asks for one is given it."""

    def __init__(self, trial: optuna.Trial, own: Mapping[str, Any]):
        self._trial = trial
        self._own = own

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._trial, attribute)
        if not attribute.startswith("suggest_"):
            return found

        def suggest(name: str, *args: Any, **kwargs: Any) -> Any:
            key = name.removeprefix("log2(").removesuffix(")")
            # What the space makes of it is of no account: `build_space` puts the study's own values over it.
            return self._own[key] if key in self._own else found(name, *args, **kwargs)

        return suggest


def _suggest(trial: optuna.Trial, key: str, distribution: Distribution) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna on ranges that `step` does not divide
        match distribution:
            case Choice(choice=choices):
                return trial.suggest_categorical(key, choices)
            case Range(low=int(low), high=int(high), log=log, step=int() | None as step):
                return trial.suggest_int(key, low, high, log=log, step=step or 1)
            case Range(low=low, high=high, log=log, step=step):
                return trial.suggest_float(key, low, high, log=log, step=step)
