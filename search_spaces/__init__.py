"""Search spaces: functions `(trial, study) -> {dotted key: value}` that say what a trial's study is made of.

`load_space` turns the names of `search.spaces` into these functions. A new space is one file here and one line below; a
user's own is named as `package.module:function`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyshot.errors import Problem, StudyError, did_you_mean
from polyshot.plugins import load_object
from polyshot.study import Study

if TYPE_CHECKING:
    import optuna

Space = Callable[["optuna.Trial", Study], dict[str, Any]]

# Each is imported when it is named: `polyshot --help` should not wait for Optuna.
SPACES: dict[str, str] = {
    "task_weights": "polyshot.search_spaces.task_weights:task_weights",
    "architecture": "polyshot.search_spaces.architecture:architecture",
    "optimisation": "polyshot.search_spaces.optimisation:optimisation",
    "sharing": "polyshot.search_spaces.sharing:sharing",
    "groupings": "polyshot.search_spaces.groupings:groupings",
    "sampling": "polyshot.search_spaces.sampling:sampling",
    "balancing": "polyshot.search_spaces.balancing:balancing",
    "meta": "polyshot.search_spaces.meta:meta",
    "transfer": "polyshot.search_spaces.transfer:transfer",
}


def load_space(name: str, study: Study) -> Space:
    """The space that `name` stands for.

    Raises:
        StudyError: when no space has this name.
        RunError: when the user's own cannot be imported.
    """
    if name in SPACES:
        module, _, function = SPACES[name].partition(":")
        return getattr(importlib.import_module(module), function)
    if ":" in name:
        return load_object(name, study.folder, "search.spaces")
    message = f"no space is named '{name}'; use {', '.join(SPACES)} or 'package.module:function'."
    raise StudyError([Problem("search.spaces", message + did_you_mean(name, SPACES))])
