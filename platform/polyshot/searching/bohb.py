"""TPE that compares trials at equal resources, for searches that stop most trials early.

Optuna's own TPE ranks trials by how far they came before it looks at values: where few are trained to their ends, the
best of its points are the first ones, which were drawn at random and stopped by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

_LEAST = 10  # trials that TPE begins to learn from
_RANDOM_EVERY = 3
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class BOHBSampler(BaseSampler):
    """Falkner, Klein & Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale" (ICML 2018).

    TPE learns from the highest rung that enough trials have reached, from what each had there; every third point is
    random, so that what is good early on is not taken for what is good in the end. TPE is Optuna's.
    """

    def __init__(self, rungs: Sequence[int], seed: int, *, is_constrained: bool = False):
        """
        Args:
            rungs: the resources at which trials are stopped.
            is_constrained: trials that end say by how much they break constraints.
        """
        self._rungs = [math.inf, *sorted(rungs, reverse=True)]  # the highest is a training's own end
        self._random = RandomSampler(seed=seed)
        self._tpe = TPESampler(seed=seed)
        # What trials that run will hold is not known before they end.
        self._states = _ENDED if is_constrained else (*_ENDED, TrialState.RUNNING)
        self._model: optuna.Study | None = None  # of the trials at one rung; None as long as there are too few
        self._rung = 0.0
        self._learnt: set[int] = set()  # numbers of the trials in it

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if _is_random(trial):
            return {}
        self._learn(study)
        return self._tpe.infer_relative_search_space(self._model, trial) if self._model else {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return self._asked(search_space) if search_space else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._model is None or _is_random(trial):
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return self._asked({param_name: param_distribution})[param_name]

    def _asked(self, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Values by TPE, from what it has learnt."""
        assert self._model is not None
        trial = self._model.ask(space)
        self._model.tell(trial, state=TrialState.FAIL)  # it is none of the trials to learn from
        return trial.params

    def _learn(self, study: optuna.Study) -> None:
        """Bring the model to what the trials have reached by now."""
        trials = study.get_trials(deepcopy=False, states=self._states)
        for rung in self._rungs:
            known = [(one, value) for one in trials if (value := _value_at(one, rung)) is not None]
            if len(known) >= _LEAST:
                break
        else:
            return
        if self._model is None or rung != self._rung:
            self._rung, self._learnt = rung, set()
            self._model = optuna.create_study(directions=study.directions, sampler=self._tpe)
        for one, value in known:
            if one.number not in self._learnt:
                self._learnt.add(one.number)
                self._model.add_trial(
                    optuna.trial.create_trial(
                        params=one.params, distributions=one.distributions, value=value, constraints=one.constraints
                    )
                )


def _is_random(trial: FrozenTrial) -> bool:
    return trial.number % _RANDOM_EVERY == _RANDOM_EVERY - 1


def _value_at(trial: FrozenTrial, rung: float) -> float | None:
    """What the trial had at the rung, or at its own end if that came before; None if it has not come so far."""
    if trial.state == TrialState.COMPLETE:
        reached = {step: value for step, value in trial.intermediate_values.items() if step <= rung}
        return reached[max(reached)] if reached else trial.value
    return next((value for step, value in trial.intermediate_values.items() if step == rung), None)
