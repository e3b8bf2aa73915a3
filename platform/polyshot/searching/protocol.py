"""The words that the driver and the worker processes of a search have in common.

A module of its own, so that workers start without Optuna.
"""

from __future__ import annotations

from polyshot.errors import PolyshotError

# Keys of a result: the objective's value (the first one's, which schedulers look at), the values of all objectives, and
# by how much constraints are broken.
OBJECTIVE, OBJECTIVES, VIOLATIONS = "objective", "objectives", "violations"
# Keys of results, and user attributes of Optuna's trials: why one failed, what stopped it.
ERROR, STOPPED = "error", "stopped"
RESULT = "result.json"  # in the run's folder, what a verb writes when its search has ended; see `sweep.ended_search`
DEADLINE = "minutes"  # what STOPPED says of a trial that the search's time limit ended


def error_words(error: BaseException) -> str:
    """An error as a trial's record shows it: the sentence of a known fault, the kind and text of another."""
    return str(error) if isinstance(error, PolyshotError) else f"{type(error).__name__}: {error}"
