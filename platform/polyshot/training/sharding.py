"""Fully sharded data parallelism: parameters, gradients and the optimiser's state divided over the workers of a run.

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (VLDB 2023), by torch's `fully_shard`.
The training loop asks for it where `scale.shard` is set. What is divided are DTensors; a checkpoint holds whole ones,
so that it is the same as one of any other number of workers.
"""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polyshot.models.encoders.images import ImageEncoder
from polyshot.models.encoders.transformer import TransformerEncoder


def divide(model: nn.Module) -> None:
    """Divide the model's parameters over all workers, in place: layer by layer those of encoders, the rest at once."""
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, TransformerEncoder | ImageEncoder):  # whose layers are called as modules
            for layer in module.layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(state: Any) -> Any:
    """A state, of dictionaries and lists, with whole tensors in the place of divided ones; all workers must ask."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def divided_like(state: Any, like: Any) -> Any:
    """A state of whole tensors, divided as the tensors of `like` are; all workers must ask."""
    if isinstance(like, DTensor):
        return distribute_tensor(state.to(like.device), like.device_mesh, like.placements)
    if isinstance(like, dict):
        return {name: divided_like(value, like[name]) for name, value in state.items()}
    if isinstance(like, list):
        return [divided_like(value, own) for value, own in zip(state, like, strict=True)]
    return state
