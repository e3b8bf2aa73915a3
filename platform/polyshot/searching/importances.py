"""Which of the searched parameters made trials good: PED-ANOVA by Optuna, over finished and stopped trials alike.

Called when a search has ended. It draws nothing.
"""

from __future__ import annotations

import optuna

_FEWEST = 8  # trials of which the better ones can be told from the rest at all


def parameter_importances(study: optuna.Study) -> dict[str, float]:
    """Each searched parameter's share, the largest first; empty for fewer than eight trials with a value.

    PED-ANOVA (Watanabe, Bansal, Hutter 2023) asks how much a parameter's distribution among the best trials differs
    from that among all, so that conditional parameters have their place too. Trials that a scheduler stopped count
    with the value they had reached: left out, as Optuna does by itself, they would hide what makes trials bad.
    """
    valued = [
        trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and trial.value is not None
    ]
    if len(valued) < _FEWEST:
        return {}
    complete = optuna.create_study(direction="maximize" if study.direction.name == "MAXIMIZE" else "minimize")
    complete.add_trials(
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.value)
        for trial in valued
    )
    return optuna.importance.get_param_importances(complete)
