"""The faults that Polyshot knows, and how each ends a command.

Everything that a user can mend is a `PolyshotError`: the command line prints its sentence and no traceback. Any other
exception is a fault of ours and keeps its traceback (in the log file).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class PolyshotError(Exception):
    """A fault that the user can mend; its text is one sentence that names the place and the mend."""


class DataError(PolyshotError):
    """The table cannot be read, or what it holds cannot be learnt from."""


class ResourceError(PolyshotError):
    """The study asks for more than the machine or the cluster has, or for a package that is not installed."""


class TrackingError(PolyshotError):
    """The tracking server or store cannot be used."""


class RunError(PolyshotError):
    """A run, a model folder or a checkpoint cannot be found or read."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a study: where it stands (a dotted key, with the file and line when known) and what to do."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class StudyError(PolyshotError):
    """A study that does not validate; carries every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


EXIT_CODES: dict[type[Exception], int] = {
    PolyshotError: 2,  # yours to mend
    Exception: 1,  # our fault
}


def exit_code(error: Exception) -> int:
    """The exit status that a command ends with when `error` reaches it."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """`" Did you mean 'x'?"` for the closest of `known`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
