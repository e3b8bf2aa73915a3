"""Meta-gradients by learn2learn itself, one task after another: what the vectorised engine is held equal to.

learn2learn is imported when a reference is first built: it takes seconds, and a banner of gym's would greet the user.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polyshot.errors import RunError
from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.base import Learner
from polyshot.meta.learners.gradient import RATES, GradientLearner
from polyshot.meta.learners.meta_curvature import CURVATURE
from polyshot.meta.networks import FewShotNetwork

# (support, labels, query, labels, mask or None), one task's → the loss [] whose gradient is the task's share.
TaskLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Reference:
    """A learner by learn2learn: its parameters by the names of the meta-weights, and the loss of one task."""

    parameters: dict[str, nn.Parameter]
    task_loss: TaskLoss


class Learn2LearnEngine:
    """See `Engine`."""

    def __init__(self, layout: FlatLayout, reference: Reference):
        self._layout = layout
        self._parameters = [reference.parameters[name] for name in layout.names]
        self._task_loss = reference.task_loss

    def gradient(self, flat: Tensor, episodes: Episodes, progress: float, remaining: int) -> tuple[Tensor, Tensor]:
        del progress, remaining
        for parameter, value in zip(self._parameters, self._layout.split(flat.detach()).values(), strict=True):
            parameter.data = value.clone()
            parameter.grad = None
        total = flat.new_zeros(())
        for task in range(len(episodes)):
            loss = self._task_loss(*(None if part is None else part[task] for part in episodes.parts()))  # type: ignore[arg-type]
            (loss / len(episodes)).backward()
            total += loss.detach() / len(episodes)
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in zip(self._layout.names, self._parameters, strict=True)
        }
        return total, self._layout.join(gradients)


@cache
def library() -> Any:
    """learn2learn, without what it and gym print when they are imported."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import learn2learn
    return learn2learn


# --- the learners that learn2learn has -------------------------------------------------------------------------------


class _Adapted(nn.Module):
    """A network to learn2learn: only what a task adapts are its parameters, the others stay where they are."""

    def __init__(self, network: nn.Module, names: list[str]):
        super().__init__()
        self._whole = [network]  # in a list, so that its parameters are none of this module's
        self._named = dict(zip((f"adapted{place}" for place in range(len(names))), names, strict=True))
        own = dict(network.named_parameters())
        for place, name in self._named.items():
            self.register_parameter(place, own[name])

    def forward(self, rows: Tensor) -> Tensor:
        own = {name: getattr(self, place) for place, name in self._named.items()}
        return functional_call(self._whole[0], own, (rows,))


def maml(learner: GradientLearner) -> Reference | None:
    """`learn2learn.algorithms.MAML`: of the whole network, of the head alone (ANIL), or of what is inserted.

    None where the head takes steps of its own size.
    """
    if learner.head_factor != 1:
        return None
    network, adapted = _parts(learner)
    algorithm = library().algorithms.MAML(adapted, lr=learner.rate, first_order=learner.first_order)
    body = network.body if learner.head_only else nn.Identity()
    return Reference(dict(network.named_parameters()), _adapting(learner, algorithm, body))


def meta_sgd(learner: GradientLearner) -> Reference:
    """`learn2learn.algorithms.MetaSGD`."""
    network, adapted = _parts(learner)
    algorithm = library().algorithms.MetaSGD(adapted, lr=learner.rate, first_order=learner.first_order)
    rates = {f"{RATES}{name}": rate for name, rate in zip(learner.adapted_names(), algorithm.lrs, strict=True)}
    body = network.body if learner.head_only else nn.Identity()
    return Reference(dict(network.named_parameters()) | rates, _adapting(learner, algorithm, body))


def meta_curvature(learner: GradientLearner) -> Reference:
    """`learn2learn.algorithms.GBML` with its `MetaCurvatureTransform`, whose "in" is a weight's first axis."""
    network, adapted = _parts(learner)
    algorithm = library().algorithms.GBML(
        adapted,
        transform=library().optim.MetaCurvatureTransform,
        lr=learner.rate,
        first_order=learner.first_order,
    )
    axes = {"mc": "scale", "mc_in": "out", "mc_out": "in", "mc_f": "place"}
    parameters = dict(network.named_parameters())
    transforms = algorithm.compute_update.transforms_modules
    for name, transform in zip(learner.adapted_names(), transforms, strict=True):
        for theirs, matrix in transform.named_parameters():
            parameters[f"{CURVATURE}{name}.{axes[theirs]}"] = matrix
    body = network.body if learner.head_only else nn.Identity()
    return Reference(parameters, _adapting(learner, algorithm, body))


def _parts(learner: GradientLearner) -> tuple[FewShotNetwork, nn.Module]:
    """A copy of the learner's network, and the part of it that is adapted to a task."""
    network = copy.deepcopy(learner.network)
    if learner.any_ways:  # then it is no meta-weight, and nothing changes it
        for parameter in network.head.parameters():
            nn.init.zeros_(parameter)
    if learner.head_only:
        return network, network.head
    names = learner.adapted_names()
    return network, network if len(names) == len(list(network.parameters())) else _Adapted(network, names)


def reptile(learner: GradientLearner) -> Reference:
    """First-order `MAML` for the steps; learn2learn leaves Reptile's meta-gradient to its user."""
    network = copy.deepcopy(learner.network)
    algorithm = library().algorithms.MAML(network, lr=learner.rate, first_order=True)

    def task_loss(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor, mask: Tensor | None) -> Tensor:
        del mask
        clone = algorithm.clone()
        rows, of_rows = torch.cat([support, query]), torch.cat([labels, query_labels])
        for _ in range(learner.steps):
            _adapt(clone, _loss(learner, clone(rows), of_rows))
        pairs = zip(network.parameters(), clone.module.parameters(), strict=True)
        return torch.stack([(start - reached.detach()).square().sum() for start, reached in pairs]).sum() / (
            2 * learner.rate
        )

    return Reference(dict(network.named_parameters()), task_loss)


def protonet(learner: Learner) -> Reference:
    """`learn2learn.nn.PrototypicalClassifier`."""
    body = copy.deepcopy(learner.network.body)

    def task_loss(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor, mask: Tensor | None) -> Tensor:
        classifier = library().nn.PrototypicalClassifier()
        # It writes the means into a tensor of its own in place, which autograd follows.
        classifier.fit_(body(support), labels)
        return _loss(learner, classifier(body(query)), query_labels, mask)

    library()
    return Reference({f"body.{name}": value for name, value in body.named_parameters()}, task_loss)


def _adapting(learner: GradientLearner, algorithm: Any, body: nn.Module) -> TaskLoss:
    def task_loss(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor, mask: Tensor | None) -> Tensor:
        clone = algorithm.clone()
        features = body(support)
        for _ in range(learner.steps):
            _adapt(clone, _loss(learner, clone(features), labels))
        return _loss(learner, clone(body(query)), query_labels, mask)

    return task_loss


def _adapt(clone: Any, loss: Tensor) -> None:
    """One inner step.

    Raises:
        RunError: when the loss does not depend on all weights: learn2learn prints autograd's words and goes on into a
            variable that is not there.
    """
    try:
        clone.adapt(loss)
    except UnboundLocalError:
        raise RunError(
            "meta.network: learn2learn cannot differentiate the loss at every weight of the network; remove the "
            "layers that its outputs do not depend on"
        ) from None


def _loss(learner: Learner, outputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    one = None if mask is None else mask.unsqueeze(0)
    return learner.objective.losses(outputs.unsqueeze(0), labels.unsqueeze(0), one).squeeze(0)
