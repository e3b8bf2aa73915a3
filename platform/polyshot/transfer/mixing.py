"""Source and target rows in one training: multi-task learning in which the source's tasks, or rows, are the others.

The methods that go on learning from the source's rows begin here. Validation and test are the target's alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from polyshot.balancing import Balancer
from polyshot.data.labels import LabelLayout
from polyshot.data.prepare import Examples
from polyshot.data.targets import Target
from polyshot.models.multitask import build_model
from polyshot.models.sharing.hard import HardSharing
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study.transfer import SourceRows
from polyshot.transfer.model import Term, TransferModel, shared_tasks, take_heads, with_source_encoder
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, require_rows, tuned

PREFIX = "source-"  # of the names of the source's tasks


def mixed(
    problem: Problem,
    settings: SourceRows,
    *,
    terms: Callable[[Tensor, Tensor, int], Sequence[Term]] = lambda *_: (),
    balancer: Callable[[Study, int], Balancer] | None = None,
    apart: bool = False,
) -> Start:
    """Training on the target's labelled rows and the source's, from the source's encoder and heads.

    Args:
        terms: given the source's rows [N, F], all training rows of the target [M, F] and the width of features: what is
            added to the loss.
        balancer: of the mixed study, whose first tasks (their number is given) are the target's; else its weights.
        apart: a task that both have is two.
    """
    source = problem.source
    if source.saved.features.layout.words or problem.shared.inputs.words:
        require_rows(problem, settings.kind)  # type: ignore[attr-defined]  # as all that are registered have
    pairs = {} if apart else dict(shared_tasks(problem.targets, source))
    kept = [place for place in range(len(source.saved.targets)) if place not in pairs.values()]
    names = [source.saved.targets[place].task for place in kept]
    study = _with_tasks(with_source_encoder(tuned(problem.study, settings), source), problem, names)

    rows = source.prepared.train
    if settings.source_rows is not None and settings.source_rows < len(rows):
        drawn = np.random.default_rng(derive_seed(problem.study.seed, "source rows"))
        chosen = torch.from_numpy(np.sort(drawn.choice(len(rows), settings.source_rows, replace=False)))
        rows = Examples(rows.features[chosen], rows.targets[chosen], rows.mask[chosen])
    of_source = _as_target(rows, problem.targets, source.saved.targets, pairs, kept)
    full = problem.target.read_by(source, its_words=True)
    once = problem.each_once(full)
    wanted = round(len(rows) * settings.target_share / (1 - settings.target_share))
    repeated = torch.arange(max(len(once), wanted)) % len(once)
    more = sum(source.saved.targets[place].width for place in kept)
    of_target = _with_columns(Examples(once.features[repeated], once.targets[repeated], once.mask[repeated]), more)
    train = Examples(*(torch.cat(parts) for parts in zip(_parts(of_target), _parts(of_source), strict=True)))

    shared = problem.read_by(source, its_words=True)
    targets = [*shared.targets, *(replace(source.saved.targets[place], task=PREFIX + name)
                                  for place, name in zip(kept, names, strict=True))]  # fmt: skip
    prepared = replace(
        shared,
        train=train,
        validation=_with_columns(shared.validation, more),
        test=_with_columns(shared.test, more),
        targets=targets,
    )
    model = build_model(study, prepared.inputs, targets)
    assert isinstance(model.sharing, HardSharing)
    model.sharing.encoder.load_state_dict(source.encoder.state_dict())
    own = list(shared_tasks(problem.targets, source))
    take_heads(model.heads, targets, source, [*own, *((len(shared.targets) + i, p) for i, p in enumerate(kept))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        added = terms(rows.features, full.train.features, model.heads.linear.in_features)
    return Start(
        study,
        prepared,
        with_source_encoder(problem.study, source),
        TransferModel(model.sharing, model.heads, terms=added),
        balancer(study, len(problem.targets)) if balancer else None,
    )


def _with_tasks(study: Study, problem: Problem, names: Sequence[str]) -> Study:
    """The study with tasks of the source as well, which together weigh as much as its own; batches are of all rows."""
    tree = study.to_dict()
    theirs = problem.source.saved.study.to_dict()["tasks"]
    total = sum(task.weight for task in study.tasks.values())
    others = sum(theirs[name]["weight"] for name in names) or 1.0
    for name in names:
        tree["tasks"][PREFIX + name] = theirs[name] | {
            "source": None,
            "arguments": {},
            "target": _prefixed(theirs[name]["target"], name),
            "weight": theirs[name]["weight"] * total / others,
        }
    tree["training"] |= {"sampling": {"kind": "rows"}, "batch_size": problem.target.study.training.batch_size}
    tree["balance"] = {"kind": "fixed"}
    return study.with_tree(tree)


def _as_target(
    rows: Examples, targets: Sequence[Target], theirs: Sequence[Target], pairs: Mapping[int, int], kept: Sequence[int]
) -> Examples:
    """The source's labels in the columns of the target's tasks and of those `kept` beside them."""
    layout, their_layout = LabelLayout.of([*targets, *(theirs[place] for place in kept)]), LabelLayout.of(theirs)
    labels = rows.targets.new_zeros(len(rows), layout.columns[-1].stop)
    mask = rows.mask.new_zeros(labels.shape)
    for place, other in [*pairs.items(), *enumerate(kept, start=len(targets))]:
        columns, values = layout.columns[place], rows.targets[:, their_layout.columns[other]]
        if place < len(targets) and targets[place].classes is None:
            mine, old = targets[place], theirs[other]
            values = (values * old.scale + old.mean - mine.mean) / mine.scale
        labels[:, columns], mask[:, columns] = values, rows.mask[:, their_layout.columns[other]]
    return Examples(rows.features, labels * mask, mask)


def _prefixed(target: str | list[str] | None, task: str) -> str | list[str]:
    """Columns of the mixed study: of no table, but no two alike."""
    return [PREFIX + label for label in target] if isinstance(target, list) else PREFIX + (target or task)


def _with_columns(examples: Examples, more: int) -> Examples:
    """The same rows with `more` columns of labels, none of which they have."""

    def widened(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(len(values), more)], 1)

    return replace(examples, targets=widened(examples.targets), mask=widened(examples.mask))


def _parts(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    return examples.features, examples.targets, examples.mask


class Alignment(Term):
    """A distance between the features of source rows and of target rows, whose labels it does not need."""

    source: Tensor  # [N, F]
    target: Tensor  # [M, F]

    def __init__(self, source: Tensor, target: Tensor, strength: float, batch: int = 128):
        super().__init__()
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("target", target, persistent=False)
        self._strength = strength
        self._batch = batch

    def forward(self, model: TransferModel) -> Tensor:
        parts = [
            rows[torch.randint(len(rows), (self._batch,), device=rows.device)] for rows in (self.source, self.target)
        ]
        features = model.heads.of_row(model.encoder(torch.cat(parts)))
        return self._strength * self.distance(*features.split(self._batch))

    @abstractmethod
    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        """Features [B, H] of both → []."""
