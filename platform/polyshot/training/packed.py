"""Packed runs: several trainings of networks of equal shape as one stacked network, each with the result it has alone.

Searches, seeds and baselines of small networks call it: most of the time of a small step is the calls themselves, which
a pack makes once for all of its runs. A run in a pack is a whole `TrainingRun` whose parameters are views of the stack:
its optimiser, learning rate, task weights, early stopping, history and checkpoint are its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from polyshot.models.stacking import Stacked, stack
from polyshot.study import Study
from polyshot.study.balance import FixedBalance
from polyshot.study.model import MLP, HardSharing
from polyshot.study.tasks import TokensTask
from polyshot.study.training import RowSampling
from polyshot.training.loop import EVALUATION_ROWS, TrainingRun

# What may differ between the runs of a pack: it changes no shape and no batch.
_OWN = {"weight", "learning_rate_factor", "sampling_weight", "metric"}


def why_alone(study: Study) -> str | None:
    """Why a training of this study cannot be packed, in a word or two; None where it can."""
    encoder, training = study.model.encoder, study.training
    if study.scale.workers > 1:
        return "scale.workers"
    if not isinstance(encoder, MLP):
        return "a custom encoder"
    if not isinstance(study.model.sharing, HardSharing):
        return f"sharing '{study.model.sharing.kind}'"
    if not isinstance(study.balance, FixedBalance):
        return f"balance '{study.balance.kind}'"
    if not isinstance(training.sampling, RowSampling):
        return f"sampling '{training.sampling.kind}'"
    if encoder.dropout:
        return "dropout"  # its random numbers are drawn for one network after another
    if encoder.normalisation == "batch":
        return "batch normalisation"
    if training.precision != "float32" or training.compile or training.accumulate > 1:
        return "training.precision, compile or accumulate"
    if any(isinstance(task, TokensTask) for task in study.tasks.values()):
        return "a task of kind 'tokens'"
    return None


def shape(study: Study) -> str:
    """Equal for studies whose runs fit into one pack, as far as each of them can be packed."""
    tree = study.to_dict()
    tasks = {name: {key: task[key] for key in task if key not in _OWN} for name, task in tree["tasks"].items()}
    batches = [study.training.batch_size, study.training.steps_per_epoch]
    return json.dumps([tree["data"], tasks, tree["model"], batches, study.scale.device])


class PackedRuns:
    """Runs of one `shape`, on the same data."""

    def __init__(self, runs: Sequence[TrainingRun]):
        self.runs = list(runs)
        self._stack()

    def epoch(self) -> None:
        """One epoch of every run that has not finished."""
        if any(run.finished for run in self.runs):
            self.keep([run for run in self.runs if not run.finished])
        if not self.runs:
            return
        started = time.perf_counter()
        losses = self._train_epoch()
        outputs = self._outputs(self.runs[0].validation.features)
        spent = (time.perf_counter() - started) / len(self.runs)
        for run, loss, own in zip(self.runs, losses, outputs, strict=True):
            run.record(loss, own, time.perf_counter() - spent)

    def keep(self, runs: Sequence[TrainingRun]) -> None:
        """Go on with these runs only; the others keep what they have reached."""
        for run in self.runs:
            for parameter in run.model.parameters():
                parameter.data = parameter.data.clone()  # no longer a part of the stack
        self.runs = list(runs)
        if self.runs:
            self._stack()

    # --- the stack ---------------------------------------------------------------------------------------------------

    def _stack(self) -> None:
        encoders = [run.model.get_submodule("sharing.encoder.blocks") for run in self.runs]
        heads = [run.model.get_submodule("heads.linear") for run in self.runs]
        self._encoder, self._heads = stack(encoders), stack(heads)
        self._parameters = [*self._share(self._encoder, encoders), *self._share(self._heads, heads)]
        self._task_weights = torch.stack([run.task_weights for run in self.runs])  # [N, T]

    def _share(self, stacked: Stacked, modules: Sequence[nn.Module]) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
        """Make the modules' parameters views of the stack's; pairs of a stacked parameter [N, ...] and these."""
        pairs = []
        each_place = zip(*(module.parameters() for module in modules), strict=True)
        for together, each in zip(stacked.parameters(), each_place, strict=True):
            for parameter, view in zip(each, together.data.unbind(), strict=True):
                parameter.data = view
            pairs.append((together, list(each)))
        return pairs

    def _forward(self, features: Tensor) -> Tensor:
        """[B, F] for all runs or [N, B, F] → outputs [N, B, O]."""
        representation = self._encoder(features, shared=features.dim() == 2)
        return self._heads(representation, shared=False)

    def _backward(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, [together for together, _ in self._parameters])
        for gradient, (_, each) in zip(gradients, self._parameters, strict=True):
            # In the parameters' own layout: the optimisers' fused updates go through both in the order of memory.
            for parameter, own in zip(each, gradient.contiguous().unbind(), strict=True):
                parameter.grad = own

    # --- an epoch ----------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> list[float]:
        """One pass over the training rows; the weighted mean loss of each run."""
        runs, first = self.runs, self.runs[0]
        data, labels = first.train, first.labels
        done = [len(run.history) for run in runs]
        for run, epochs in zip(runs, done, strict=True):
            run.model.begin_epoch(epochs + 1)
        self._encoder.train()
        steps = first.sampler.steps
        loss_sums, counts = torch.zeros_like(self._task_weights), torch.zeros_like(self._task_weights)
        for step, rows in enumerate(self._batches(done)):
            known = data.mask[rows]  # [B, L] or [N, B, L]
            labelled = labels.totals(known.sum(-2))  # [T] or [N, T]
            counts += labelled
            outputs, together = self._forward(data.features[rows]), (len(runs), -1, -1)
            sums = first.losses(outputs, data.targets[rows].expand(*together), known.expand(*together))  # [N, T]
            self._backward((self._task_weights * sums / labelled.clamp(min=1)).sum())
            for run, epochs in zip(runs, done, strict=True):
                run.update(epochs * steps + step)
            loss_sums += sums.detach()
        losses = loss_sums / counts.clamp(min=1)
        return [torch.dot(run.task_weights, own).item() for run, own in zip(runs, losses, strict=True)]

    def _batches(self, done: Sequence[int]) -> Iterator[Tensor]:
        """Rows [B] that all runs train on next, or [N, B] of each."""
        orders = {(run.study.seed, epochs) for run, epochs in zip(self.runs, done, strict=True)}
        if len(orders) == 1:
            for batch in self.runs[0].sampler.epoch(done[0] + 1):
                yield batch.rows
            return
        each = [run.sampler.epoch(epochs + 1) for run, epochs in zip(self.runs, done, strict=True)]
        for batches in zip(*each, strict=True):
            yield torch.stack([batch.rows for batch in batches])

    @torch.no_grad()
    def _outputs(self, features: Tensor) -> Tensor:
        """[V, F] → [N, V, O]."""
        self._encoder.eval()
        rows = max(1, EVALUATION_ROWS // len(self.runs))
        return torch.cat([self._forward(part) for part in features.split(rows)], 1)


def train_packed(runs: Sequence[TrainingRun], on_epoch: Callable[[], object] = lambda: None) -> None:
    """Train all runs to their ends: packs of those that fit together, the others alone."""
    packs: dict[str, list[TrainingRun]] = {}
    for number, run in enumerate(runs):
        packs.setdefault(shape(run.study) if why_alone(run.study) is None else str(number), []).append(run)
    for members in packs.values():
        left = [run for run in members if not run.finished]
        if len(left) == 1:
            for _ in left[0].epochs():
                on_epoch()
        elif left:
            pack = PackedRuns(left)
            while not all(run.finished for run in left):
                pack.epoch()
                on_epoch()
            pack.keep([])
