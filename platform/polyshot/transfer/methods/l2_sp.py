"""L2-SP: fine-tuning that is drawn back to the source's weights, its starting point.

Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (ICML 2018),
equation 3: Ω(w) = α/2 ‖w_S − w_S⁰‖² + β/2 ‖w_S̄‖², with S the weights that the source has too and S̄ the new heads. It
takes the place of weight decay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyshot.study.transfer import L2SP
from polyshot.transfer.model import Term, TransferModel, from_source, shared_tasks, with_source_encoder
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, transferring, tuned


class StartingPoint(Term):
    """Half the squared distance of each weight from where it is drawn to, times its strength."""

    def __init__(self, pulled: dict[str, tuple[Tensor, Tensor]]):
        """`pulled`: by parameter's name, where it is drawn to and how strongly, both of its shape (or a scalar)."""
        super().__init__()
        self._names = list(pulled)
        for place, (point, strength) in enumerate(pulled.values()):
            self.register_buffer(f"point_{place}", point, persistent=False)
            self.register_buffer(f"strength_{place}", strength, persistent=False)

    def forward(self, model: TransferModel) -> Tensor:
        parameters = dict(model.named_parameters())
        return torch.stack(
            [
                (getattr(self, f"strength_{place}") * (parameters[name] - getattr(self, f"point_{place}")) ** 2).sum()
                for place, name in enumerate(self._names)
            ]
        ).sum().div(2)  # fmt: skip


def prepare(settings: L2SP, problem: Problem) -> Start:
    study = with_source_encoder(tuned(problem.study, settings), problem.source)
    study = study.with_values({"training.optimiser.weight_decay": 0.0})
    model = from_source(study, problem.source, problem.shared.inputs, problem.targets)
    alpha, beta = torch.tensor(settings.strength), torch.tensor(settings.head_strength)
    pulled = {
        name: (parameter.detach().clone(), alpha)
        for name, parameter in model.named_parameters()
        if not name.startswith("heads.")
    }
    kept = torch.zeros(model.heads.weights.width, 1, dtype=torch.bool)
    for task, other in shared_tasks(problem.targets, problem.source):
        kept[model.heads.weights.columns[task]] = other in problem.source.readers
    for name, parameter in model.heads.linear.named_parameters(prefix="heads.linear"):
        rows = kept if parameter.dim() == 2 else kept[:, 0]
        pulled[name] = (parameter.detach() * rows, torch.where(rows, alpha, beta))
    return Start(study, problem.shared, study, transferring(model, terms=[StartingPoint(pulled)]))
