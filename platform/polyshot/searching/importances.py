"""Which of the searched parameters made trials good, by two measures of Optuna; finished and stopped trials count.

Called when a search has ended. It draws nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
import pandas as pd
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

_FEWEST = 8  # trials of which the better ones can be told from the rest at all


def importances(study: optuna.Study, names: Sequence[str], seed: int) -> dict[str, pd.DataFrame]:
    """Of each objective (`names`), the searched parameters' shares, the largest first; none for fewer than 8 trials.

    Column `ped_anova` (Watanabe, Bansal, Hutter 2023): how much a parameter's distribution among the best trials
    differs from that among all, so that conditional parameters have their place too. Column `fanova` (Hutter, Hoos,
    Leyton-Brown 2014): which share of the variance over the whole space it explains; NaN for conditional parameters.
    """
    found = {}
    for place, name in enumerate(names):
        one = of_one_objective(study, place)
        if len(one.trials) < _FEWEST:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            found[name] = pd.DataFrame(
                {
                    "ped_anova": _shares(one, PedAnovaImportanceEvaluator()),
                    "fanova": _shares(one, FanovaImportanceEvaluator(seed=seed)),
                }
            ).sort_values("ped_anova", ascending=False)
    return found


def of_one_objective(study: optuna.Study, place: int) -> optuna.Study:
    """The trials that have a value as complete trials of one objective.

    Trials that a scheduler stopped count with the value they had reached: left out, as Optuna does by itself, they
    would hide what makes trials bad.
    """
    one = optuna.create_study(direction=study.directions[place])
    one.add_trials(
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[place])
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.values
    )
    return one


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> pd.Series:
    return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator), dtype=float)
