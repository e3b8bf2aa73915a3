"""The words that the driver and the worker processes of a search have in common.

A module of its own, so that workers start without Optuna.
"""

from __future__ import annotations

from polyshot.errors import PolyshotError

# Keys of a result: the objective's value (the first one's, which schedulers look at), the values of all objectives, and
# by how much constraints are broken.
OBJECTIVE, OBJECTIVES, VIOLATIONS = "objective", "objectives", "violations"
# What a trial was given so far, by which schedulers compare it with others (its epochs, or shares of the labels); where
# it is left out, there is nothing to compare. Of a population, also the objective of the last epoch alone.
RESOURCE, CURRENT = "resource", "current"
# Keys of results, and user attributes of Optuna's trials. Of a population's trial: how its model came about, a list of
# {epoch, trial, values, parameters}: from this epoch on it was trained by this trial with these values, which Optuna's
# parameters make. With labels as fidelity: how many labelled rows the trial was given last.
LINEAGE, LABELS = "lineage", "labels"
# Keys of results, and user attributes of Optuna's trials: why one failed, what stopped it.
ERROR, STOPPED = "error", "stopped"
RESULT = "result.json"  # in the run's folder, what a verb writes when its search has ended; see `sweep.ended_search`
DEADLINE = "minutes"  # what STOPPED says of a trial that the search's time limit ended


def error_words(error: BaseException) -> str:
    """An error as a trial's record shows it: the sentence of a known fault, the kind and text of another."""
    return str(error) if isinstance(error, PolyshotError) else f"{type(error).__name__}: {error}"
