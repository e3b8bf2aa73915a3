"""Two ways to the same meta-gradient: all tasks of a batch at once, or learn2learn's loop over them.

`build_engine` chooses by `meta.engine`, and says so where it cannot do what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from polyshot.errors import Problem, StudyError
from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.engines.vectorised import VectorisedEngine
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Learner


class Engine(Protocol):
    """Computes meta-gradients at flat meta-weights."""

    def gradient(self, flat: Tensor, episodes: Episodes, progress: float, remaining: int) -> tuple[Tensor, Tensor]:
        """The mean loss [] over the episodes' tasks and its gradient [P] at the meta-weights [P].

        Args:
            progress: from 0 to 1, how far meta-training has come.
            remaining: how many more times this will be called, for a decision whether to compile.
        """
        ...


def build_engine(
    learner: Learner,
    layout: FlatLayout,
    *,
    engine: Literal["auto", "vectorised", "learn2learn"],
    compile: Literal["auto", "always", "never"],  # noqa: A002 - the study's word
    note: Callable[[str], None],
) -> Engine:
    """The engine that `meta.engine` asks for; `note` is told, in a sentence, when it is another than one may think.

    Raises:
        StudyError: when learn2learn is asked for and has no such learner.
    """
    if engine == "learn2learn" or (engine == "auto" and learner.forward_pass.way == "loop"):
        reference = learner.reference()
        if reference is not None:
            from polyshot.meta.engines.learn2learn import Learn2LearnEngine

            if engine == "auto":
                note(
                    "The network normalises by batches in a way that is not vectorised, so meta-training goes task by "
                    "task with learn2learn; a torch.nn.Sequential of layers that torch has would be vectorised."
                )
            return Learn2LearnEngine(layout, reference)
        if engine == "learn2learn":
            message = "learn2learn has no such learner with these options; use 'auto'"
            raise StudyError([Problem("meta.engine", message)])
    return VectorisedEngine(learner, layout, compile=compile, note=note)
