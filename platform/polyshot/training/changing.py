"""One training whose settings change on the way, as those of a population's trials do.

Searches call it to train such a trial again by itself, and the single tasks with the same changes. What changes must
leave the state of a training as it is (see `study.search.CHANGEABLE`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from polyshot.study import Study
from polyshot.training.loop import Epoch


class Resumable(Protocol):
    """A training that can hand its state to another one, such as a `TrainingRun`."""

    def epochs(self) -> Iterator[Epoch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Run = TypeVar("Run", bound=Resumable)


def train_changing(studies: Mapping[int, Study], begin: Callable[[Study], Run]) -> Run:
    """Train to the end, with each of the `studies` from its epoch on (the first one's is 1); returns the last run."""
    ends = [*list(studies)[1:], None]
    run: Run | None = None
    for study, end in zip(studies.values(), ends, strict=True):
        before, run = run, begin(study)
        if before is not None:
            run.load_state_dict(before.state_dict())
        for epoch in run.epochs():
            if end is not None and epoch.number >= end - 1:
                break
    assert run is not None
    return run
