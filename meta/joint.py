"""Multi-task training of a meta-learner's own body, beside its meta-training: `meta.joint`.

The body serves two objectives at once: adapting to a task's rows, and predicting all of the study's tasks from the
training rows without adapting, with a head for each. `MetaRun` adds the weighted sum of both gradients up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyshot.data.labels import LabelLayout
from polyshot.errors import Problem, StudyError
from polyshot.meta.episodes import EpisodeSource, Groups
from polyshot.meta.learners import Learner
from polyshot.meta.stacked import Weights, stacked_forward
from polyshot.models.heads import HeadLayout
from polyshot.seeds import derive_seed
from polyshot.study import Study
from polyshot.training.losses import TaskLosses
from polyshot.training.world import World

HEADS = "joint."  # the names of the heads' weights


class JointTraining:
    """The weighted task losses Σ λ L of a study on rows of its training groups, under hard sharing.

    Rows are a function of (seed, iteration) and are shared out to the workers, as episodes are.
    """

    def __init__(self, study: Study, source: EpisodeSource, learner: Learner, device: torch.device):
        """
        Raises:
            StudyError: for episodes that are made of no table.
        """
        if not isinstance(source, Groups):
            message = "needs rows of a table that all tasks are labelled in; use episodes of kind 'groups', or null"
            raise StudyError([Problem("meta.joint", message)])
        self._study = study
        self._rows = source.pooled.to(device)
        self._layout = HeadLayout.of(source.targets)
        self._labels = LabelLayout.of(source.targets)
        self._losses = TaskLosses(study, source.targets, self._layout)
        self._task_weights = torch.tensor(list(study.task_weights.values()), device=device)
        self._features = int(learner.network.head.in_features)
        self._body = stacked_forward(learner.network.body, "body.")

    def weights(self) -> Weights:
        """The heads' initial weights: all tasks' rows of one matrix."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._study.seed, "joint heads"))
            heads = nn.Linear(self._features, self._layout.width)
        return {f"{HEADS}{name}": value.detach().clone() for name, value in heads.named_parameters()}

    def loss(self, weights: Weights, iteration: int, world: World) -> Tensor:
        """This worker's part [] of the loss of `training.batch_size` rows; the parts add up to the whole."""
        generator = torch.Generator().manual_seed(derive_seed(self._study.seed, "joint rows", iteration))
        count = min(self._study.training.batch_size, len(self._rows))
        chosen = torch.randint(len(self._rows), (count,), generator=generator).to(self._rows.features.device)
        labelled = self._labels.totals(self._rows.mask[chosen].sum(0)).clamp(min=1)
        mine = world.share(chosen)
        features = self._body(weights, self._rows.features[mine].unsqueeze(0))[0]
        outputs = nn.functional.linear(features, weights[f"{HEADS}weight"], weights[f"{HEADS}bias"])
        sums = self._losses(outputs, self._rows.targets[mine], self._rows.mask[mine])
        return torch.dot(self._task_weights, sums / labelled)
