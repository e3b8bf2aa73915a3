"""The training loop in plain torch: one epoch after another, each a value that the caller can log, compare or stop at.

The same loop runs in a process of its own, as a step of a Ray Tune trial and as a worker of a Ray Train group. It knows
nothing of any of them: who trains with it is told to it as a `World`, and what it finds it yields.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyshot.balancing import Balancer, LossBalancer, build_balancer
from polyshot.balancing.backward import build_backward
from polyshot.data.prepare import Examples, TrainingData
from polyshot.errors import PolyshotError, ResourceError
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study.training import LOSS
from polyshot.training.losses import TaskLosses
from polyshot.training.metrics import evaluate, is_better
from polyshot.training.optimisers import TaskRates, build_optimiser, parameter_factors
from polyshot.training.sampling import build_sampler
from polyshot.training.world import World

EVALUATION_ROWS = 16_384  # rows at once where no gradients are kept; bounds the memory of large tables
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingDivergedError(PolyshotError):
    """The loss became infinite or NaN before any epoch could be kept."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: `metrics` are train/loss, val/loss, learning_rate and val/<task>/<metric>."""

    number: int  # from 1
    metrics: dict[str, float]
    seconds: float
    is_best: bool  # by `training.monitor`, so far


class TrainingRun:
    """One training of one model: all its state, and the epochs that change it.

    Randomness is a function of (seed, epoch, rank), so that `state_dict` between two epochs is all that it takes to go
    on as if nothing had happened. The number of workers changes the speed and never the batches: each global batch is
    shared out, and gradients are of its mean loss.
    """

    def __init__(
        self,
        study: Study,
        data: TrainingData,
        *,
        device: torch.device | None = None,
        world: World | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        shard: bool = False,
        model: MultiTaskModel | None = None,
        balancer: Balancer | None = None,
    ):
        """
        Args:
            wrap: makes the model data-parallel where `world` has more than one worker.
            shard: in place of that, divides it over the workers.
            model: trained in place of a fresh one of the study's.
            balancer: in place of the study's.
        """
        self.study = study
        self.world = world or World()
        self.device = device or choose_device(study)
        self._settings = study.training
        check_precision(study, self.device.type)
        self.train = data.train.to(self.device)
        self.validation = data.validation.to(self.device)
        self._targets = data.targets
        self.labels = data.labels

        model = model or build_model(study, data.inputs, data.targets)
        self.model = model.to(self.device)
        self._sharded = shard
        if shard:
            from polyshot.training.sharding import divide  # its imports take a second, which other runs are spared

            divide(self.model)
        self.losses = TaskLosses(study, data.targets, self.model.layout)
        self.task_weights = torch.tensor(list(study.task_weights.values()), device=self.device)
        self.balancer = (balancer or build_balancer(study)).to(self.device)
        factors = [task.learning_rate_factor for task in study.tasks.values()]
        rates = [
            *((rows, factor) for task, factor in enumerate(factors) for rows in self.model.task_parameters(task)),
            *self.model.learning_rates(),
        ]
        self._optimiser = build_optimiser(
            study.training.optimiser,
            self.model.parameters(),
            without_decay=self.balancer.parameters(),
            factors=parameter_factors(rates),
        )
        self._task_rates = TaskRates(rates)
        self.sampler = build_sampler(study, self.labels.labelled(self.train.mask))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._settings.precision == "float16")
        self._forward: nn.Module = self.model
        if isinstance(self.balancer, LossBalancer):  # others see to their gradients of several workers themselves
            self._forward = wrap(self.model)
            if self._settings.compile:
                self._forward = torch.compile(self._forward)  # type: ignore[assignment]
        self._pass = build_backward(
            study,
            self.model,
            self.balancer,
            world=self.world,
            compute=self._forward,
            scaler=self._scaler,
            precision=_AUTOCAST.get(self._settings.precision),
        )

        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}

    # --- the loop ----------------------------------------------------------------------------------------------------

    def epochs(self) -> Iterator[Epoch]:
        """Train until the budget is used, validation stops improving or the loss is no longer a number."""
        while not self.finished:
            yield self._epoch()

    @property
    def finished(self) -> bool:
        if not self.history:
            return False
        last, stopping = self.history[-1], self._settings.early_stopping
        if last.number >= self._settings.epochs or not math.isfinite(last.metrics["train/loss"]):
            return True
        return stopping is not None and last.number - (self.best.number if self.best else 0) >= stopping.patience

    def _epoch(self) -> Epoch:
        started = time.perf_counter()
        loss = self._train_epoch(len(self.history) + 1)
        return self.record(loss, self.outputs(self.validation), started)

    def record(self, train_loss: float, outputs: Tensor, started: float) -> Epoch:
        """The end of an epoch that began at `started` (`time.perf_counter`), with the outputs [N, O] on validation."""
        metrics = {"train/loss": train_loss, "learning_rate": self._optimiser.learning_rate}
        metrics |= {f"val/{name}": value for name, value in self._validate(outputs).items()}
        is_best = self._is_best(metrics)
        epoch = Epoch(len(self.history) + 1, metrics, time.perf_counter() - started, is_best)
        self.history.append(epoch)
        if is_best:
            self.best = epoch
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return epoch

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        if not math.isfinite(metrics["val/loss"]):
            return False
        if self.best is None:
            return True
        best, name = self.best.metrics, f"val/{self._settings.monitor}"
        if math.isnan(metrics[name]) and math.isnan(best[name]):  # labels that do not define it
            name = "val/loss"
        return math.isnan(best[name]) or is_better(name.rpartition("/")[2], metrics[name], best[name])

    def update(self, step: int) -> None:
        """Change the parameters by their gradients, in `step` (from 0) of the whole budget."""
        self._optimiser.learning_rate = learning_rate(self.study, step, self._settings.epochs * self.sampler.steps)
        if self._settings.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)  # type: ignore[arg-type]  # has what is asked of it
            nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm)
        with self._task_rates.applied():
            self._scaler.step(self._optimiser)  # type: ignore[arg-type]  # as above
        self._scaler.update()

    def _train_epoch(self, number: int) -> float:
        """The updates of one epoch; returns the weighted mean loss."""
        data, world = self.train, self.world
        self.model.begin_epoch(number)
        self._forward.train()
        loss_sums = torch.zeros(len(self._targets), device=self.device)
        label_counts = torch.zeros(len(self._targets), dtype=torch.long, device=self.device)
        steps = self.sampler.steps
        with self._seeded(number):
            for step, batch in enumerate(self.sampler.epoch(number), (number - 1) * steps):
                mine, known = world.share(batch.rows), data.mask.index_select(0, batch.rows)
                if batch.counts is not None:
                    known &= self.labels.repeated(batch.counts)
                labelled = self.labels.totals(known.sum(0))
                label_counts += labelled
                mean = labelled.clamp(min=1).reciprocal()

                self._optimiser.zero_grad()
                known = world.share(known)
                parts = self._parts(len(batch.rows))
                if parts == 1:
                    sums = self._gradients(mine, known, mean)
                else:
                    split = zip(mine.tensor_split(parts), known.tensor_split(parts), strict=True)
                    sums = torch.stack([self._gradients(*part, mean, 1 / parts) for part in split]).sum(0)
                self.update(step)
                loss_sums += sums
                if self.balancer.wants_losses_after_step:
                    with torch.no_grad(), self._autocast():
                        outputs = self.model(data.features.index_select(0, mine))
                    sums = self.losses(outputs.float(), data.targets.index_select(0, mine), known)
                    self.balancer.after_step(world.sum(sums * mean))
        world.average(self.model.buffers())
        losses = world.sum(loss_sums) / label_counts.clamp_(min=1)
        self.balancer.end_epoch(losses)
        self.sampler.end_epoch(losses)
        return torch.dot(self.task_weights, losses).item()

    def _gradients(self, rows: Tensor, known: Tensor, mean: Tensor, share: float = 1.0) -> Tensor:
        """Add to the gradients those of some `rows` of a batch; returns their sums of losses [T].

        Args:
            mean: [T], what sums are multiplied by to be the batch's mean losses.
            share: of the penalty.
        """
        features, labels = self.train.features.index_select(0, rows), self.train.targets.index_select(0, rows)
        with self._autocast():
            outputs = self._pass.forward(features)
        sums = self.losses(outputs.float(), labels, known)
        penalty = self.model.penalty()
        self._pass.backward(sums * mean, penalty if share == 1 else share * penalty)
        return sums.detach()

    def _parts(self, rows: int) -> int:
        """In how many parts a batch of all workers is computed, on each of them: none of them is empty."""
        if self._settings.accumulate == 1 or not isinstance(self.balancer, LossBalancer):
            return 1
        return max(1, min(self._settings.accumulate, rows // self.world.size))

    def _validate(self, outputs: Tensor) -> dict[str, float]:
        """The weighted loss, which means the same for every balancer, and the tasks' metrics on the validation rows."""
        data = self.validation
        counts = self.labels.totals(data.mask.sum(0))
        losses = self.losses(outputs, data.targets, data.mask) / counts.clamp_(min=1)
        metrics = evaluate(
            outputs.cpu().numpy(),
            data.targets.cpu().numpy(),
            data.mask.cpu().numpy(),
            self._targets,
            self.model.layout,
            self.study,
        )
        values = {LOSS: torch.dot(self.task_weights, losses).item(), **metrics}
        # Workers that disagreed in the last bit could disagree on whether to go on, and wait for each other for ever.
        decisive = (LOSS, self._settings.monitor)
        own = torch.tensor([values[name] for name in decisive], dtype=torch.float64, device=self.device)
        return values | dict(zip(decisive, self.world.from_first(own).tolist(), strict=True))

    @torch.no_grad()
    def outputs(self, data: Examples) -> Tensor:
        """The model's outputs [N, O] for all rows, computed by all workers together."""
        self.model.eval()
        mine = self.world.share(data.features)
        own = len(mine)
        if self._sharded:  # all workers must compute as many parts, since they exchange parameters for each
            mine = torch.cat([mine, data.features[: -(-len(data.features) // self.world.size) - own]])
        with self._autocast():
            parts = [self.model(rows).float() for rows in mine.split(EVALUATION_ROWS)]
        return self.world.gather(torch.cat(parts)[:own], len(data.features))

    def evaluate(self, data: Examples) -> dict[str, float]:
        """Every metric of every task, as `task/metric`, of the best epoch's weights on `data`.

        Raises:
            TrainingDivergedError: when no epoch could be kept.
        """
        return evaluate(
            self.best_outputs(data), data.targets.numpy(), data.mask.numpy(), self._targets, self.model.layout
        )

    def best_outputs(self, data: Examples) -> NDArray[np.float32]:
        """The outputs [N, O] for all rows of the best epoch's weights.

        Raises:
            TrainingDivergedError: when no epoch could be kept.
        """
        self.restore_best()
        return self.outputs(data.to(self.device)).cpu().numpy()

    def restore_best(self) -> None:
        """Put the best epoch's weights into the model."""
        if self.best is None:
            raise TrainingDivergedError(
                "training diverged: the loss is not a number; lower training.optimiser.learning_rate "
                f"(now {self._settings.optimiser.learning_rate:g}) or set training.clip_norm"
            )
        self.model.load_state_dict(self.best_weights)

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = _AUTOCAST.get(self._settings.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    @contextmanager
    def _seeded(self, epoch: int) -> Iterator[None]:
        """Dropout's randomness for one epoch of this worker; the caller's own random state is left as it was."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.study.seed, "dropout", epoch, self.world.rank))
            yield

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on: tensors and plain values only, so that it loads with `weights_only=True`.

        The tensors are the run's own, which later epochs change: write them away before training goes on. All workers
        of a run that is sharded must ask together.
        """
        state = {
            "model": self.model.state_dict(),
            "balancer": self.balancer.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": self.best_weights,
        }
        if self._sharded:
            from polyshot.training.sharding import whole

            return whole(state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._sharded:
            from polyshot.training.sharding import divided_like

            own = self.model.state_dict()
            like = {"model": own, "best_weights": own, "optimiser": self._optimiser.state_dict()}
            state = state | {name: divided_like(state[name], part) for name, part in like.items()}
        self.model.load_state_dict(state["model"])
        self.balancer.load_state_dict(state["balancer"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict(state["sampler"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = next((epoch for epoch in reversed(self.history) if epoch.is_best), None)
        self.best_weights = {name: value.to(self.device) for name, value in state["best_weights"].items()}


def choose_device(study: Study) -> torch.device:
    """The device that `scale.device` names.

    Raises:
        ResourceError: when it asks for a GPU and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if study.scale.device == "cuda" and not has_gpu:
        raise ResourceError(
            "scale.device: 'cuda' was asked for and this machine has no usable GPU; use 'auto' or 'cpu'"
        )
    return torch.device("cuda" if has_gpu and study.scale.device != "cpu" else "cpu")


def check_precision(study: Study, device_type: str) -> None:
    """Refuse what the device cannot do.

    Raises:
        ResourceError: for float16 without a GPU.
    """
    if study.training.precision == "float16" and device_type != "cuda":
        raise ResourceError("training.precision: float16 needs a GPU; use bfloat16 or float32")


def learning_rate(study: Study, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) of `steps` in the whole budget."""
    schedule, peak = study.training.schedule, study.training.optimiser.learning_rate
    warmup = int(schedule.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule.kind:
        case "cosine":
            return peak * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return peak * (1 - progress)
        case _:
            return peak
