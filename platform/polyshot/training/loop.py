"""The training loop in plain torch: one epoch after another, each a value that the caller can log, compare or stop at.

The same loop runs in a process of its own, as a step of a Ray Tune trial and as a worker of a Ray Train group. It knows
nothing of any of them: who trains with it is told to it as a `World`, and what it finds it yields.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyshot.balancing import build_balancer
from polyshot.data.prepare import Examples, Prepared
from polyshot.errors import PolyshotError, ResourceError
from polyshot.models.multitask import build_model
from polyshot.seeds import derive_seed
from polyshot.study import SGD, Study
from polyshot.training.losses import TaskLosses
from polyshot.training.metrics import evaluate
from polyshot.training.world import World

_EVALUATION_ROWS = 16_384  # rows at once where no gradients are kept; bounds the memory of large tables
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingDivergedError(PolyshotError):
    """The loss became infinite or NaN before any epoch could be kept."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: `metrics` are train/loss, val/loss, learning_rate and val/<task>/<metric>."""

    number: int  # from 1
    metrics: dict[str, float]
    seconds: float
    is_best: bool  # the lowest validation loss so far


class TrainingRun:
    """One training of one model: all its state, and the epochs that change it.

    Randomness is a function of (seed, epoch, rank), so that `state_dict` between two epochs is all that it takes to go
    on as if nothing had happened. The number of workers changes the speed and never the batches: each global batch is
    shared out, and gradients are of its mean loss.
    """

    def __init__(
        self,
        study: Study,
        prepared: Prepared,
        *,
        device: torch.device | None = None,
        world: World | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ):
        """`wrap` makes the model data-parallel where `world` has more than one worker."""
        self.study = study
        self.world = world or World()
        self.device = device or choose_device(study)
        self._settings = study.training
        if self._settings.precision == "float16" and self.device.type != "cuda":
            raise ResourceError("training.precision: float16 needs a GPU; use bfloat16 or float32")
        self._train = prepared.train.to(self.device)
        self._validation = prepared.validation.to(self.device)
        self._targets = prepared.targets

        self.model = build_model(study, self._train.features.shape[1], prepared.targets).to(self.device)
        self._forward = wrap(self.model)
        if self._settings.compile:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]
        self._losses = TaskLosses(study, prepared.targets, self.model.layout)
        self.balancer = build_balancer(study).to(self.device)
        self._optimiser = _build_optimiser(study, self.model)
        self._steps = math.ceil(len(self._train.features) / self._settings.batch_size)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, _learning_rate_factor(study, self._settings.epochs * self._steps)
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._settings.precision == "float16")

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
        number = len(self.history) + 1
        metrics = {"train/loss": self._train_epoch(number), "learning_rate": self._schedule.get_last_lr()[0]}
        metrics |= {f"val/{name}": value for name, value in self._validate().items()}
        loss = metrics["val/loss"]
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best.metrics["val/loss"])
        epoch = Epoch(number, metrics, time.perf_counter() - started, is_best)
        self.history.append(epoch)
        if is_best:
            self.best = epoch
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return epoch

    def _train_epoch(self, number: int) -> float:
        """One pass over the training rows; returns the balanced mean loss."""
        data = self._train
        self._forward.train()
        order = torch.randperm(
            len(data.features), generator=torch.Generator().manual_seed(derive_seed(self.study.seed, "order", number))
        ).to(self.device)
        loss_sums, label_counts = torch.zeros(2, data.targets.shape[1], device=self.device)
        with self._seeded(number):
            for rows in order.tensor_split(self._steps):  # [B] of the whole world; equal sizes, within one row
                mine = self.world.share(rows)
                counts = data.mask[rows].sum(0)
                with self._autocast():
                    outputs = self._forward(data.features[mine])
                sums = self._losses(outputs.float(), data.targets[mine], data.mask[mine])
                # Data-parallel gradients are averaged over workers; times their number they are those of the batch mean.
                loss = self.balancer(self.world.size * sums / counts.clamp(min=1))

                self._optimiser.zero_grad()
                self._scaler.scale(loss).backward()
                if self._settings.clip_norm is not None:
                    self._scaler.unscale_(self._optimiser)
                    nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm)
                self._scaler.step(self._optimiser)
                self._scaler.update()
                self._schedule.step()

                loss_sums += sums.detach()
                label_counts += counts
        return self.balancer(self.world.sum(loss_sums) / label_counts.clamp(min=1)).item()

    def _validate(self) -> dict[str, float]:
        """Balanced loss, task losses and each task's metric on the validation rows."""
        data = self._validation
        outputs = self.outputs(data)
        losses = self._losses(outputs, data.targets, data.mask) / data.mask.sum(0).clamp(min=1)
        metrics = evaluate(
            outputs.cpu().numpy(),
            data.targets.cpu().numpy(),
            data.mask.cpu().numpy(),
            self._targets,
            self.model.layout,
            self.study,
        )
        return {"loss": self.balancer(losses).item(), **metrics}

    @torch.no_grad()
    def outputs(self, data: Examples) -> Tensor:
        """The model's outputs [N, O] for all rows, computed by all workers together."""
        self.model.eval()
        mine = self.world.share(data.features)
        with self._autocast():
            parts = [self.model(rows).float() for rows in mine.split(_EVALUATION_ROWS)]
        return self.world.gather(torch.cat(parts), len(data.features))

    def evaluate(self, data: Examples) -> dict[str, float]:
        """Every metric of every task, as `task/metric`, of the best epoch's weights on `data`.

        Raises:
            TrainingDivergedError: when no epoch could be kept.
        """
        self.restore_best()
        outputs = self.outputs(data.to(self.device))
        return evaluate(
            outputs.cpu().numpy(), data.targets.numpy(), data.mask.numpy(), self._targets, self.model.layout
        )

    def restore_best(self) -> None:
        """Put the best epoch's weights into the model."""
        if self.best is None:
            raise TrainingDivergedError(
                "training diverged: the loss is not a number; lower training.optimiser.learning_rate "
                f"(now {self._settings.optimiser.learning_rate:g}) or set training.clip_norm"
            )
        self.model.load_state_dict(self.best_weights)

    def _autocast(self) -> torch.autocast:
        dtype = _AUTOCAST.get(self._settings.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def _seeded(self, epoch: int) -> Iterator[None]:
        """Dropout's randomness for one epoch of this worker; the caller's own random state is left as it was."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.study.seed, "dropout", epoch, self.world.rank))
            yield

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on: tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "balancer": self.balancer.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.balancer.load_state_dict(state["balancer"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
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
        raise ResourceError("scale.device: 'cuda' was asked for and this machine has no usable GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if has_gpu and study.scale.device != "cpu" else "cpu")


def _build_optimiser(study: Study, model: nn.Module) -> torch.optim.Optimizer:
    settings = study.training.optimiser
    if isinstance(settings, SGD):
        return torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def _learning_rate_factor(study: Study, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step."""
    schedule = study.training.schedule
    warmup_steps = int(schedule.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        match schedule.kind:
            case "cosine":
                return (1 + math.cos(math.pi * progress)) / 2
            case "linear":
                return 1 - progress
            case _:
                return 1.0

    return factor
