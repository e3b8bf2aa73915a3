"""A training step with TorchJD as its documentation of multi-task learning has it: `mtl_backward`, `jac_to_grad`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

AGGREGATORS: dict[str, Callable[[int], aggregation.Aggregator]] = {
    "mgda": lambda _: aggregation.MGDA(),
    "pcgrad": lambda _: aggregation.PCGrad(),
    "gradvac": lambda _: aggregation.GradVac(),
    "cagrad": lambda _: aggregation.CAGrad(c=0.5),
    "imtl_g": lambda _: aggregation.IMTLG(),
    "nash_mtl": lambda tasks: aggregation.NashMTL(n_tasks=tasks),
    "aligned_mtl": lambda _: aggregation.AlignedMTL(),
    "upgrad": lambda _: aggregation.UPGrad(),
    "fairgrad": lambda _: aggregation.FairGrad(alpha=2.0),
    "dualproj": lambda _: aggregation.DualProj(),
    "config": lambda _: aggregation.ConFIG(),
    "graddrop": lambda _: aggregation.GradDrop(),
}


def turn(
    kind: str, features: torch.Tensor, labels: torch.Tensor, shape: tuple[int, int, int, int], _: str | None
) -> Callable[[], None] | str:
    """An epoch over the rows, or why there is none."""
    inputs, width, tasks, batch = shape
    if kind not in AGGREGATORS:
        return "not a method of gradients here"
    try:
        aggregator = AGGREGATORS[kind](tasks)
    except (ImportError, NameError) as error:  # NashMTL fails before its own check
        return f"an optional solver is not installed ({error})"
    encoder = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
    optimiser = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=1e-3)

    def run() -> None:
        for rows in torch.randperm(len(features)).split(batch):
            shared = encoder(features[rows])
            losses = [
                nn.functional.mse_loss(head(shared).squeeze(1), labels[rows, task]) for task, head in enumerate(heads)
            ]
            optimiser.zero_grad()
            mtl_backward(losses, features=shared)
            jac_to_grad(encoder.parameters(), aggregator)
            optimiser.step()

    return run
