"""What a long-running verb tells whoever watches: the verbs call it, the command line shows it."""

from __future__ import annotations


class Progress:
    """Receives what happens; every method does nothing until a display overrides it."""

    def start(self, activity: str, total: int | None = None) -> None:
        """An activity such as "baseline read" begins, of `total` steps when that is known."""

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        """`completed` steps of the activity are done; `words` say how it stands."""

    def finish(self, activity: str, words: str = "") -> None:
        """The activity has ended."""

    def best(self, values: dict[str, float], of_any: dict[str, float]) -> None:
        """What the best trial so far has reached, by metric name; and the best that any trial has, for each metric."""

    def note(self, text: str) -> None:
        """Something that the user should read and that is not an error."""


SILENT = Progress()
