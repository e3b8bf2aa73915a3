"""What no section can check alone: names that must agree, and the search space against the schema.

`Study.from_dict` asks for it once every section is valid by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polyshot.errors import StudyError, did_you_mean
from polyshot.study.meta import GroupEpisodes
from polyshot.study.model import MLP, CustomEncoder, GroupedSharing, HierarchicalSharing, PLESharing
from polyshot.study.search import RANK, Choice, Search, why_fixed
from polyshot.study.tasks import MultilabelTask, RegressionTask, TokensTask
from polyshot.study.training import LOSS
from polyshot.study_file import Key

if TYPE_CHECKING:
    from polyshot.study.study import Study


def disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """What no section can check alone: names that must agree, and the search space against the schema."""
    targets = study.targets
    owners: dict[str, str] = {}
    # A column that is called like a task is that task's.
    for name, columns in sorted(targets.items(), key=lambda item: item[1] != [item[0]]):
        for column in dict.fromkeys(columns):
            owner = owners.setdefault(column, name)
            if columns.count(column) > 1:
                yield ("tasks", name, "target"), f"names '{column}' {columns.count(column)} times; keep one"
            elif owner != name and None in (study.tasks[name].source, study.tasks[owner].source):
                message = f"task '{owner}' has the target column '{column}' too; give each a column of its own"
                yield ("tasks", name), message
            if column in (study.data.features or []):
                word = "the target" if len(columns) == 1 else "a label"
                yield ("data", "features"), f"'{column}' is {word} of task '{name}'; remove it from the features"
    for name, task in study.tasks.items():
        if task.source is None and study.data.source is None:
            yield ("data", "source"), f"is missing, and task '{name}' has no source of its own; name a table"
            break
    if study.data.source is not None and all(task.source is not None for task in study.tasks.values()):
        yield ("data", "source"), "is read by no task, since each has a source of its own; remove it"
    for name in study.data.text:
        if (kind := study.data.columns.get(name, "text")) != "text":
            yield ("data", "text", name), f"data.columns calls the column '{kind}'; remove it from one of both"
    for name in study.data.images:
        if (kind := study.data.columns.get(name, "image")) != "image":
            yield ("data", "images", name), f"data.columns calls the column '{kind}'; remove it from one of both"
    for name, task in study.tasks.items():
        labels = task.target if isinstance(task, MultilabelTask) else []
        if clashing := [label for label in labels if f"{name}_{label}" in study.tasks]:
            message = f"the prediction of its label '{clashing[0]}' is called like the task '{name}_{clashing[0]}'"
            yield ("tasks", name), f"{message}; rename one of the tasks"
    if study.data.group in owners:
        yield ("data", "group"), f"'{study.data.group}' is a target column; group by another column"
    if study.data.split.column in owners:
        yield ("data", "split", "column"), f"'{study.data.split.column}' is a target column; name another one"
    if study.transfer.folds is not None and study.data.split.column is not None:
        yield ("transfer", "folds"), "are drawn, and data.split.column says where each row belongs; remove one of both"
    yield from _sharing_disagreements(study)
    yield from _token_disagreements(study)
    yield from _shard_disagreements(study)
    episodes = study.meta.episodes
    if isinstance(episodes, GroupEpisodes) and episodes.task is not None and episodes.task not in study.tasks:
        yield ("meta", "episodes", "task"), f"names no task of this study.{did_you_mean(episodes.task, study.tasks)}"
    first = next(iter(study.tasks))
    if study.transfer.per_class and isinstance(study.tasks[first], RegressionTask | TokensTask):
        yield ("transfer", "per_class"), f"task '{first}', the first one, has no classes; remove it"
    sampling, balance = study.training.sampling.kind, study.balance.kind
    if sampling not in WHOLE_BATCHES and balance not in ONE_BY_ONE:
        yield (
            ("training", "sampling", "kind"),
            f"'{sampling}' gives batches of one task each, and balance.kind '{balance}' compares tasks within a batch; "
            "use joint or rows",
        )
    if study.training.steps_per_epoch is not None and sampling != "rows":
        message = f"is for sampling of kind rows, and '{sampling}' says itself how long an epoch is; remove it"
        yield ("training", "steps_per_epoch"), message
    if study.training.monitor not in (LOSS, *study.metrics):
        message = f"must be {LOSS} or a task's metric such as {first_metric(study)}, got '{study.training.monitor}'."
        yield ("training", "monitor"), message + did_you_mean(study.training.monitor, [LOSS, *study.metrics])
    if study.training.accumulate > 1 and balance not in LINEAR:
        message = f"balance.kind '{balance}' needs the losses of a whole batch at once; use {' or '.join(LINEAR)}"
        yield ("training", "accumulate"), message
    yield from _objective_disagreements(study)
    yield from _population_disagreements(study)
    if study.search.fidelity == "labels" and study.scale.workers > 1:
        yield ("scale", "workers"), "a trial with the fidelity 'labels' trains in one process; set it to 1"
    known = study.flat()
    without_search = study.to_dict() | {"search": Search().model_dump(mode="json")}
    yield from _start_disagreements(study, without_search)
    for key, distribution in study.search.space.items():
        section = key.rpartition(".")[0]
        if not any(name == key or name.startswith(f"{section}.") for name in known):
            yield ("search", "space", key), f"names no key of this study.{did_you_mean(key, known)}"
            continue
        extremes = distribution.choice if isinstance(distribution, Choice) else [distribution.low, distribution.high]
        for value in extremes:
            try:
                study.with_tree(without_search).with_values({key: value})
            except StudyError as error:
                yield ("search", "space", key), f"the key does not accept {value!r}: {error.problems[0].message}"
                break


def _objective_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """Objectives and constraints that name no task, or no metric of its kind."""
    known = study.quantities
    for name in study.search.objectives:
        if name not in (*known, RANK):
            shown = ", ".join((*(name for name in known if "/" not in name), RANK))
            yield (
                ("search", "objective"),
                f"must be one of {shown}, or a task's metric such as {first_metric(study)}, got '{name}'."
                + did_you_mean(name, [*known, RANK]),
            )
    if study.search.objectives == [RANK] and len(study.tasks) < 2:
        yield ("search", "objective"), "'rank' weighs tasks against each other and there is one; name its metric"
    for place, bound in enumerate(study.search.bounds):
        if bound.name not in known:
            yield (
                ("search", "constraints", place),
                f"'{bound.name}' is nothing that can be bounded; name a cost, an improvement or a task's metric such "
                f"as {first_metric(study)}.{did_you_mean(bound.name, known)}",
            )


def _population_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """What trials that copy each other on the way cannot do, or need."""
    search = study.search
    if not search.is_population:
        return
    for key, distribution in search.space.items():
        if reason := why_fixed(key):
            yield ("search", "space", key), reason
        elif search.scheduler == "pb2" and isinstance(distribution, Choice):
            yield ("search", "space", key), "the scheduler 'pb2' searches numbers; give low and high, or use 'pbt'"
    if search.grace_epochs >= study.training.epochs:
        message = f"leaves a population no exchange within {study.training.epochs} epochs; lower it"
        yield ("search", "grace_epochs"), message
    if study.scale.workers > 1:
        message = f"each trial of a population ('{search.scheduler}') trains in one process; set it to 1"
        yield ("scale", "workers"), message


def first_metric(study: Study) -> str:
    name, task = next(iter(study.tasks.items()))
    return f"{name}/{task.metric}"


def _start_disagreements(study: Study, without_search: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Points of the user's own that are no studies."""
    for place, point in enumerate(study.search.start):
        if not isinstance(point, str):
            try:
                study.with_tree(without_search).with_values(point)
            except StudyError as error:
                problem = error.problems[0]
                yield ("search", "start", place), f"is no study: {problem.place} {problem.message}"


# Balancers that weigh each task by itself; the others compare the losses or gradients of a batch's tasks, which must be
# more than one.
ONE_BY_ONE = ("fixed", "random", "uncertainty", "dwa", "imtl_l")
WHOLE_BATCHES = ("rows", "joint")
SHARDED = ("fixed", "random", "uncertainty", "dwa", "gls", "stch", "imtl_l")  # one backward pass, and none after a step
LINEAR = ("fixed", "dwa")  # what is descended is a sum over the labels of a batch, with weights known before


def _sharing_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """Tasks and layers that a sharing scheme names and that are not there; custom encoders are checked when built."""
    sharing, encoder = study.model.sharing, study.model.encoder
    layers = encoder.depth if isinstance(encoder, MLP) else None
    if isinstance(sharing, HierarchicalSharing):
        for task, depth in sharing.depths.items():
            place: Key = ("model", "sharing", "depths", task)
            if task not in study.tasks:
                yield place, f"names no task of this study.{did_you_mean(task, study.tasks)}"
            if layers is not None and depth > layers:
                yield place, f"the encoder has {layers} layers, got {depth}; lower it or raise model.encoder.depth"
    if isinstance(sharing, GroupedSharing):
        grouped = [task for group in sharing.groups for task in group]
        place = ("model", "sharing", "groups")
        for task in dict.fromkeys(grouped):
            if task not in study.tasks:
                yield place, f"'{task}' names no task of this study.{did_you_mean(task, study.tasks)}"
            elif grouped.count(task) > 1:
                yield place, f"task '{task}' stands in them {grouped.count(task)} times; keep one"
        for task in study.tasks:
            if task not in grouped:
                yield place, f"task '{task}' is in none of them; add it to one, or give it a group of its own"
    if isinstance(sharing, PLESharing) and layers is not None and sharing.levels > layers:
        yield (
            ("model", "sharing", "levels"),
            f"the encoder's layers are divided over the levels and it has {layers}, got {sharing.levels} levels; "
            "lower model.sharing.levels or raise model.encoder.depth",
        )


def _token_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """Tasks of words need an encoder that reads words, and read one column of them."""
    tokens = {name: task for name, task in study.tasks.items() if isinstance(task, TokensTask)}
    if not tokens:
        return
    if study.model.text is None and not isinstance(study.model.encoder, CustomEncoder):
        message = f"'{study.model.encoder.kind}' reads no words, and task '{next(iter(tokens))}' labels them"
        yield ("model", "encoder", "kind"), f"{message}; use transformer"
    first = next(iter(tokens.values())).words
    for name, task in tokens.items():
        if task.words != first:
            yield ("tasks", name, "words"), f"another task labels the words of '{first}'; all of a study label the same"
        if task.words in study.data.text:
            yield ("data", "text", task.words), "the column holds words that model.encoder reads; remove it here"
    if getattr(study.balance, "at", "parameters") == "features":
        message = "gradients are compared at one vector a row, and tasks of kind tokens read one for each word"
        yield ("balance", "at"), f"{message}; use parameters"


def _shard_disagreements(study: Study) -> Iterator[tuple[Key, str]]:
    """What cannot be done with parameters of which each worker has a part."""
    if not study.scale.shard:
        return
    place: Key = ("scale", "shard")
    if study.balance.kind not in SHARDED:
        yield place, f"needs a balancer that weighs losses, and balance.kind is '{study.balance.kind}'; use fixed"
    if study.model.sharing.kind != "hard":
        yield place, f"needs one encoder, and model.sharing.kind is '{study.model.sharing.kind}'; use hard"
    if any(task.learning_rate_factor != 1 for task in study.tasks.values()):
        yield place, "divides the heads, and a task has a learning_rate_factor; remove it"
    if study.training.precision == "float16":
        yield place, "has no loss scaling, which float16 needs; use bfloat16"
