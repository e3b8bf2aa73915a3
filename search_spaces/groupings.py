"""Which tasks share an encoder: a partition of the tasks, as groups of the sharing scheme `grouped`.

A partition is drawn as a restricted-growth string (Hutchinson 1963; Knuth, "The Art of Computer Programming" 4A,
7.2.1.5): the first task opens group 0, and every further one joins a group that is there or opens the next. Each
partition is drawn in one way only, so that no two suggestions mean the same study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.study import Study
from polyshot.study.model import GroupedSharing

if TYPE_CHECKING:
    import optuna


def groupings(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`model.sharing` as `grouped`, with its groups; nothing for a single task.

    There are no more groups than the study's own `model.sharing.groups` has; where it shares in another way, any
    number. List no space beside this one that draws `model.sharing.kind`, since the later one would win.
    """
    tasks, sharing = list(study.tasks), study.model.sharing
    if len(tasks) == 1:
        return {}
    most = len(sharing.groups) if isinstance(sharing, GroupedSharing) else len(tasks)
    groups = [[tasks[0]]]
    for task in tasks[1:]:
        choices = list(range(min(len(groups) + 1, most)))
        # Named by what can be chosen from, since the choices of one name must always be the same. They have no order.
        place = trial.suggest_categorical(f"group.{task}.of_{len(choices)}", choices) if len(choices) > 1 else 0
        if place == len(groups):
            groups.append([])
        groups[place].append(task)
    return {"model.sharing.kind": "grouped", "model.sharing.groups": groups}
