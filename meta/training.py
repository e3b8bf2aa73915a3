"""The meta-training loop: one update of the meta-weights after another, with looks at validation tasks in between.

Plain torch: who trains with it is told to it as a `World`, and what it finds it yields, as `training.loop` does. It
writes nothing and knows neither Ray nor MLflow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from polyshot.errors import Problem, ResourceError, StudyError
from polyshot.meta.engines import build_engine
from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.episodes import Episodes, EpisodeSource, Split
from polyshot.meta.evaluation import TASKS_AT_ONCE, Scores, episode_batches, score
from polyshot.meta.joint import JointTraining
from polyshot.meta.learners import Learner, build_learner
from polyshot.meta.networks import build_network
from polyshot.meta.stacked import Weights
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.study import training as sections
from polyshot.training.loop import Epoch, TrainingDivergedError, choose_device
from polyshot.training.optimisers import AdamW
from polyshot.training.world import World

NOT_FINITE = "not_finite"  # of a look's metrics: the share of the validation tasks whose loss is no finite number


class MetaRun:
    """One meta-training of one learner: all its state, and the updates that change it.

    Episodes are a function of (seed, iteration), each meta-batch is shared out to the workers and its meta-gradient is
    the mean over all of its tasks, so that the number of workers changes the speed alone. `state_dict` is all that it
    takes to go on.

    An `Epoch` here is what lies between two looks at the validation tasks.
    """

    def __init__(
        self,
        study: Study,
        source: EpisodeSource,
        *,
        device: torch.device | None = None,
        world: World | None = None,
        note: Callable[[str], None] = lambda _: None,
        learner: Learner | None = None,
        start: Weights | None = None,
    ):
        """A run that has not begun.

        Args:
            note: is told in a sentence what the user should know of how the run is done.
            learner: in place of the study's.
            start: weights to begin from in place of fresh ones, by the names of the learner's (some or all).

        Raises:
            StudyError: for a network or a learner that does not fit the tasks.
            ResourceError: when there are more workers than tasks in a batch, or no such device.
        """
        self.study = study
        self.source = source
        self.world = world or World()
        self.device = device or choose_device(study)
        self._settings = study.meta
        workers = max(self.world.size, study.scale.workers)  # said before they are started
        if study.meta.tasks_per_batch < workers:
            raise ResourceError(
                f"meta.tasks_per_batch: {study.meta.tasks_per_batch} tasks cannot be shared out to {workers} workers; "
                "raise it, or lower scale.workers"
            )
        self.learner = learner or build_learner(
            self._settings.learner, build_network(study, source.shape, source.outputs), source.objective
        )
        weights = self.learner.weights() | (start or {})
        self.layout = FlatLayout.of(weights)
        self._joint: JointTraining | None = None
        if self._settings.joint is not None:
            self._joint = JointTraining(study, source, self.learner, self.device)
            weights |= self._joint.weights()
        self._whole = FlatLayout.of(weights)  # begins as `layout`
        self._flat = nn.Parameter(self._whole.join(weights).to(self.device))
        self._of_training = self._trained()
        self._engine = build_engine(
            self._of_training, self.layout, engine=self._settings.engine, compile=self._settings.compile, note=note
        )
        adam = sections.AdamW(learning_rate=self._settings.learning_rate, weight_decay=0.0)
        self._optimiser = AdamW(adam, [self._flat])

        self.iteration = 0
        losses = 2 if self._joint else 1
        self._loss_sums = torch.zeros(losses, device=self.device)  # of all workers since the last look
        self._looked = time.perf_counter()
        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self._best_flat: Tensor | None = None

    def _trained(self) -> Learner:
        """The learner as it is trained: the same meta-weights, told to tell `meta.episodes.train_ways` classes apart.

        Raises:
            StudyError: when its meta-weights depend on how many classes there are.
        """
        ways = getattr(self._settings.episodes, "train_ways", None) or self.source.outputs
        if ways == self.source.outputs:
            return self.learner
        if not self.learner.any_ways:
            message = (
                f"'{self._settings.learner.kind}' has an output for every class, in training as in tests; "
                "leave it out, set meta.learner.zero_head (maml, first_order_maml, anil), or use protonet or ridge"
            )
            raise StudyError([Problem("meta.episodes.train_ways", message)])
        network = build_network(self.study, self.source.shape, ways)
        return build_learner(self._settings.learner, network, self.source.objective, ways=self.source.outputs)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def iterations(self) -> Iterator[Epoch | None]:
        """Train until the budget is used, validation stops improving or the loss is no longer a number.

        Yields after every iteration: an epoch when the validation tasks were looked at, else None.
        """
        while not self.finished:
            self._iterate()
            is_last = self.iteration == self._settings.iterations
            yield self._look() if self.iteration % self._settings.validate_every == 0 or is_last else None

    def epochs(self) -> Iterator[Epoch]:
        """The epochs of `iterations`."""
        return (epoch for epoch in self.iterations() if epoch is not None)

    @property
    def finished(self) -> bool:
        if self.iteration >= self._settings.iterations:
            return True
        if not self.history:
            return False
        last, stopping = self.history[-1], self._settings.early_stopping
        if not math.isfinite(last.metrics["train/loss"]):
            return True
        return stopping is not None and last.number - (self.best.number if self.best else 0) >= stopping.patience

    def _iterate(self) -> None:
        settings, world = self._settings, self.world
        generator = torch.Generator().manual_seed(derive_seed(self.study.seed, "episodes", self.iteration))
        episodes = self.source.sample("train", settings.tasks_per_batch, generator, world.share).to(self.device)
        progress = self.iteration / settings.iterations
        parts = world.sum(self._gradient(episodes, progress))
        gradient, losses = parts.split([len(self._flat), len(self._loss_sums)])
        if settings.clip_norm is not None:
            gradient = gradient * (settings.clip_norm / gradient.norm()).clamp(max=1)
        self._flat.grad = gradient
        self._optimiser.learning_rate = self._learning_rate(progress)
        self._optimiser.step()
        self._loss_sums += losses
        self.iteration += 1

    def _gradient(self, episodes: Episodes, progress: float) -> Tensor:
        """This worker's part of the gradient, then of the losses: [P + L]. The parts add up to the whole."""
        settings = self._settings
        meta_weights, heads = self._flat.detach().split([self.layout.size, self._whole.size - self.layout.size])
        loss, gradient = self._engine.gradient(meta_weights, episodes, progress, settings.iterations - self.iteration)
        # The means of the shares, by their sizes, add up to the mean of the batch.
        share = len(episodes) / settings.tasks_per_batch
        parts = torch.cat([gradient, torch.zeros_like(heads), loss.view(1)]) * share
        if self._joint is None:
            return parts
        assert settings.joint is not None
        joint_loss = self._joint.loss(self._whole.split(self._flat), self.iteration, self.world)
        (joint_gradient,) = torch.autograd.grad(joint_loss, self._flat)
        parts[: len(self._flat)] += settings.joint.weight * joint_gradient
        return torch.cat([parts, joint_loss.detach().view(1)])

    def _learning_rate(self, progress: float) -> float:
        rate = self._settings.learning_rate
        return rate * (1 + math.cos(math.pi * progress)) / 2 if self._settings.schedule == "cosine" else rate

    def _look(self) -> Epoch:
        since = self.iteration - self._iterations_before()
        losses = (self._loss_sums / since).tolist()
        self._loss_sums.zero_()
        # All workers judge all tasks: they must agree on whether to go on.
        scores = self._score(
            self._calibrated(self.weights()), "validation", self._settings.validation_tasks, self.steps
        )
        values = self.world.from_first(torch.stack(scores.means()))
        validation_loss, metric, not_finite = values.tolist()
        metrics = {
            **dict(zip(("train/loss", "train/joint_loss"), losses, strict=False)),
            "learning_rate": self._optimiser.learning_rate,
            "val/loss": validation_loss,
            f"val/{self.source.name}/{self.source.objective.metric}": metric,
            NOT_FINITE: not_finite,
        }
        is_best = math.isfinite(validation_loss) and (self.best is None or _rank(metrics) < _rank(self.best.metrics))
        now = time.perf_counter()
        epoch = Epoch(len(self.history) + 1, metrics, now - self._looked, is_best)
        self._looked = now
        self.history.append(epoch)
        if is_best:
            self.best = epoch
            self._best_flat = self._flat.detach().clone()
        return epoch

    def _iterations_before(self) -> int:
        return len(self.history) * self._settings.validate_every

    @property
    def steps(self) -> int:
        """Steps within a task; 0 for a learner that solves for its solution."""
        return getattr(self.learner, "steps", 0)

    # --- its results -------------------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        """The meta-weights as they are now."""
        return self._learners(self._flat.detach())

    def best_weights(self) -> Weights:
        """The meta-weights that did best on the validation tasks.

        Raises:
            TrainingDivergedError: when they never gave a finite loss.
        """
        if self._best_flat is None:
            raise TrainingDivergedError(
                "meta-training diverged: the loss is not a number; lower meta.learning_rate "
                f"(now {self._settings.learning_rate:g}) or meta.learner.rate, or set meta.clip_norm"
            )
        return self._calibrated(self._learners(self._best_flat))

    def _learners(self, flat: Tensor) -> Weights:
        return self.layout.split(flat[: self.layout.size])

    def evaluate(self, split: Split, tasks: int, steps: int) -> Scores:
        """How the best weights do on tasks of a split, after each of `steps` steps."""
        return self._score(self.best_weights(), split, tasks, steps)

    def _calibrated(self, weights: Weights) -> Weights:
        generator = torch.Generator().manual_seed(derive_seed(self.study.seed, "calibration"))
        episodes = self.source.sample("train", TASKS_AT_ONCE, generator).to(self.device)
        return self._of_training.calibrated(weights, episodes)

    def _score(self, weights: Weights, split: Split, tasks: int, steps: int) -> Scores:
        batches = episode_batches(self.study, self.source, split, tasks)
        return score(self.learner, weights, (episodes.to(self.device) for episodes in batches), steps)

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on: tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "iteration": self.iteration,
            "weights": self._flat.detach(),
            "optimiser": self._optimiser.state_dict(),
            "loss_sums": self._loss_sums,
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": self._best_flat,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        with torch.no_grad():
            self._flat.copy_(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._loss_sums = state["loss_sums"].to(self.device)
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        for epoch in self.history:  # earlier versions do not say: a mean that was finite was that of all tasks
            epoch.metrics.setdefault(NOT_FINITE, 0.0)
        self.best = next((epoch for epoch in reversed(self.history) if epoch.is_best), None)
        best = state["best_weights"]
        self._best_flat = None if best is None else best.to(self.device)


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    """What the best look has least of: tasks that diverged, then the mean loss of the others."""
    return metrics[NOT_FINITE], metrics["val/loss"]
