"""Distillation: the study's own model, of any size, learns from labels and from what a trained one makes of the rows.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015): T² KL(p_teacher ‖ p_student) of
probabilities softened by the temperature T, and the squared error of standardised predictions for regression; for tasks
that the teacher has too. Romero et al., "FitNets" (ICLR 2015): the student's features, by a linear map that is learnt
with them, near the teacher's standardised ones. Both on all training rows, for which no labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyshot.errors import RunError
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.study.transfer import Distillation
from polyshot.transfer.model import Term, TransferModel, shared_tasks
from polyshot.transfer.problem import Problem
from polyshot.transfer.source import Source
from polyshot.transfer.start import Start, require_rows, tuned


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of one task: its columns of the taught outputs and of the student's."""

    kind: str
    taught: slice
    own: slice


class Teaching(Term):
    """The distance of the student from the teacher on a random batch of rows."""

    rows: Tensor  # [N, F], as the student reads them
    outputs: Tensor  # [N, O'], the teacher's for the tasks that both have, in the student's encoding
    features: Tensor  # [N, H'], the teacher's, standardised

    def __init__(
        self,
        settings: Distillation,
        rows: Tensor,
        outputs: Tensor,
        lessons: Sequence[Lesson],
        features: Tensor,
        width: int,
        batch: int,
    ):
        """`width`: of the student's features."""
        super().__init__()
        self._settings = settings
        self._lessons = lessons
        self._batch = min(batch, len(rows))
        for name, values in (("rows", rows), ("outputs", outputs), ("features", features)):
            self.register_buffer(name, values, persistent=False)
        self.map = nn.Linear(width, features.shape[1]) if settings.features else None

    def forward(self, model: TransferModel) -> Tensor:
        drawn = torch.randint(len(self.rows), (self._batch,), device=self.rows.device)
        representation = model.representation(self.rows[drawn])
        loss = representation.new_zeros(())
        if self._lessons and self._settings.logits:
            outputs, taught = model.heads(representation), self.outputs[drawn]
            losses = [self._of(lesson, outputs[:, lesson.own], taught[:, lesson.taught]) for lesson in self._lessons]
            loss = loss + self._settings.logits * torch.stack(losses).mean()
        if self.map is not None:
            mapped = self.map(representation)
            if mapped.dim() == 3:  # a representation for each task
                mapped = mapped.mean(0)
            loss = loss + self._settings.features * F.mse_loss(mapped, self.features[drawn])
        return loss

    def _of(self, lesson: Lesson, outputs: Tensor, taught: Tensor) -> Tensor:
        if lesson.kind == "regression":
            return F.mse_loss(outputs, taught)
        if lesson.kind == "multilabel":  # each label is two classes
            outputs, taught = outputs.reshape(-1, 1), taught.reshape(-1, 1)
        return softened_divergence(outputs, taught, self._settings.temperature)


def softened_divergence(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(taught / T) ‖ softmax(outputs / T)) [], the mean over rows of logits [B, C], or [B, 1] for two."""

    def logs(logits: Tensor) -> Tensor:
        both = logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
        return F.log_softmax(both / temperature, 1)

    return temperature**2 * F.kl_div(logs(outputs), logs(taught), log_target=True, reduction="batchmean")


def prepare(settings: Distillation, problem: Problem) -> Start:
    """
    Raises:
        RunError: when the teacher has nothing to teach.
    """
    require_rows(problem, settings.kind)
    teacher = problem.source if settings.teacher is None else problem.sources.teachers[settings.teacher]
    study = tuned(problem.study, settings)
    rows = problem.target.read_by(teacher, its_words=True).train.features
    model = build_model(study, problem.own.inputs, problem.targets)
    outputs, lessons = _lessons(model, problem, teacher, rows)
    if not lessons and not settings.features:
        raise RunError(
            f"transfer.methods: the teacher '{teacher.name}' has none of this study's tasks, so only its features can "
            "be taught; give 'features' a weight above 0"
        )
    with torch.no_grad():
        features = teacher.saved.model.heads.of_row(teacher.encoder.eval()(rows))
    features = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        teaching = Teaching(
            settings,
            problem.own_rows,
            outputs,
            lessons,
            features,
            model.sharing.outputs,
            problem.target.study.training.batch_size,
        )
    return Start(study, problem.own, study, TransferModel(model.sharing, model.heads, terms=[teaching]))


@torch.no_grad()
def _lessons(model: MultiTaskModel, problem: Problem, teacher: Source, rows: Tensor) -> tuple[Tensor, list[Lesson]]:
    """What the teacher predicts for `rows`, in the student's encoding, and which columns are whose."""
    said = teacher.saved.model.eval()(rows)
    parts, lessons, width = [rows[:, :0]], [], 0
    for place, other in shared_tasks(problem.targets, teacher):
        mine, theirs = problem.targets[place], teacher.saved.targets[other]
        part = said[:, teacher.saved.model.layout.columns[other]]
        if mine.kind == "regression":
            part = (part * theirs.scale + theirs.mean - mine.mean) / mine.scale
        parts.append(part)
        lessons.append(Lesson(mine.kind, slice(width, width + part.shape[1]), model.layout.columns[place]))
        width += part.shape[1]
    return torch.cat(parts, 1), lessons
