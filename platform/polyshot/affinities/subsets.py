"""Some of a study's tasks as a study of their own: what is trained for a pair, and what is proposed for a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyshot.study import Study
from polyshot.study.data import Source
from polyshot.study.search import IMPROVEMENT, RANK, Search


def of_tasks(study: Study, tasks: Sequence[str]) -> Study:
    """The study with `tasks` only, in its own order; for one task, its single-task baseline.

    The targets of the tasks left out are no features, rows and splits stay the same, and what named these tasks
    elsewhere (depths, groups, searched weights) is left out too.
    """
    names = [task for task in study.tasks if task in tasks]
    if len(names) == 1:
        return study.single_task(names[0])
    tree = study.to_dict()
    tree["tasks"] = {name: tree["tasks"][name] for name in names}
    if not any(task["weight"] for task in tree["tasks"].values()):
        tree["tasks"] = {name: task | {"weight": 1.0} for name, task in tree["tasks"].items()}
    tree["training"]["monitor"] = study.monitor_among(names)
    tree["data"]["ignore"] += [target for task, own in study.targets.items() if task not in names for target in own]
    if all(task["source"] is not None for task in tree["tasks"].values()):
        tree["data"] |= {"source": None, "arguments": {}}
    elif study.stratified_by:
        tree["data"]["split"]["stratify"] = study.stratified_by[0]
    tree["model"]["sharing"] = _sharing(tree["model"]["sharing"], names)
    if tree["meta"]["episodes"].get("task") not in names:
        tree["meta"]["episodes"].pop("task", None)
    tree["search"] = _search(study, names)
    return _like(study, tree)


def elsewhere(study: Study, name: str) -> Study:
    """The study under another name, to be read from a file in any folder."""
    tree = study.to_dict() | {"name": name[:100].rstrip("-")}
    for place in (tree["data"], *tree["tasks"].values()):
        if place["source"] is not None and not Source(source=place["source"]).is_function:
            place["source"] = str(study.folder.absolute() / Path(place["source"]).expanduser())
    return _like(study, tree)


def _sharing(sharing: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    match sharing:
        case {"kind": "hierarchical", "depths": depths}:
            kept = {task: depth for task, depth in depths.items() if task in names}
            return sharing | {"depths": kept} if kept else {"kind": "hard"}
        case {"kind": "grouped", "groups": groups}:
            groups = [[task for task in group if task in names] for group in groups]
            return sharing | {"groups": [group for group in groups if group]}
    return sharing


def _search(study: Study, names: Sequence[str]) -> dict[str, Any]:
    search = study.search.model_dump(mode="json")
    others = [task for task in study.tasks if task not in names]

    def is_left(quantity: str) -> bool:
        return quantity.partition("/")[0] not in others

    if not all(map(is_left, study.search.objectives)) or (study.search.objectives == [RANK] and len(names) < 2):
        search["objective"] = IMPROVEMENT
    search["constraints"] = [
        text for text, bound in zip(study.search.constraints, study.search.bounds, strict=True) if is_left(bound.name)
    ]
    search["space"] = {
        key: space
        for key, space in search["space"].items()
        if not any(key.startswith((f"tasks.{task}.", f"model.sharing.depths.{task}")) for task in others)
    }
    if not search["space"] and not search["spaces"]:
        search["spaces"] = Search().spaces
    return search


def _like(study: Study, tree: dict[str, Any]) -> Study:
    made = Study.from_dict(tree)
    made._folder = study.folder
    return made
