"""A training step with LibMTL: its model and `backward` in the loop of its `Trainer`, which itself asks for a GPU."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# The name of LibMTL's class, and the parameters that its command line gives it by default.
WEIGHTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed": ("EW", {}),
    "uncertainty": ("UW", {}),
    "dwa": ("DWA", {"T": 2.0}),
    "gls": ("GLS", {}),
    "famo": ("FAMO", {"FAMO_w_lr": 0.025, "FAMO_w_gamma": 1e-3}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
    "gradvac": ("GradVac", {"beta": 0.5, "GradVac_beta": 0.5, "GradVac_group_type": 0}),
    "cagrad": ("CAGrad", {"calpha": 0.5, "rescale": 1}),
    "nash_mtl": ("Nash_MTL", {"update_weights_every": 1, "optim_niter": 20, "max_norm": 1.0}),
    "aligned_mtl": ("Aligned_MTL", {}),
    "upgrad": ("UPGrad", {"UPGrad_norm_eps": 1e-4, "UPGrad_reg_eps": 1e-4}),
    "fairgrad": ("FairGrad", {"FairGrad_alpha": 2.0}),
    "graddrop": ("GradDrop", {"leak": 0.0}),
}


def turn(
    kind: str, features: torch.Tensor, labels: torch.Tensor, shape: tuple[int, int, int, int], checkout: str | None
) -> Callable[[], None] | str:
    """An epoch over the rows, or why there is none."""
    inputs, width, tasks, batch = shape
    if kind not in WEIGHTINGS:
        return "it has no such method"
    if checkout and checkout not in sys.path:
        sys.path.append(checkout)
    name, parameters = WEIGHTINGS[kind]
    old = types.ModuleType("torchvision.models.utils")  # its ResNets import from where torchvision had it until 2021
    old.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault(old.__name__, old)
    try:
        weighting = getattr(importlib.import_module(f"LibMTL.weighting.{name}"), name)
        sharing = importlib.import_module("LibMTL.architecture.HPS").HPS
        if kind == "nash_mtl":  # without it, every step has equal weights, and no word is said
            importlib.import_module("ecos")
    except ImportError as error:
        return f"not installed, or this version has no such method ({error})"

    class Encoder(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    class Model(sharing, weighting):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            decoders = nn.ModuleDict({task: nn.Linear(width, 1) for task in names})
            super().__init__(names, Encoder, decoders, kind == "graddrop", False, torch.device("cpu"))
            self.init_param()

        def zero_grad_share_params(self) -> None:
            self.encoder.zero_grad(set_to_none=False)  # the default when it was written

    names = [f"t{task}" for task in range(tasks)]
    model = Model()
    model.epoch, model.train_loss_buffer = 0, torch.zeros(tasks, 2).numpy()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        for rows in torch.randperm(len(features)).split(batch):
            predictions = model(features[rows])
            losses = torch.zeros(tasks)
            for task, task_name in enumerate(names):
                losses[task] = nn.functional.mse_loss(predictions[task_name].squeeze(1), labels[rows, task])
            optimiser.zero_grad()
            model.backward(losses, **parameters)
            optimiser.step()

    try:
        run()
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:  # such as three tasks only
        return f"fails on {tasks} tasks ({type(error).__name__}: {error})"
    return run
