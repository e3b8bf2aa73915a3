"""The shared encoder as balancers see it: from the tasks' gradients at its output to those of its parameters.

A `Trunk` computes a representation and, given a gradient per task at it, the Jacobian of the task losses at its
parameters. For a chain of linear layers and activations that is done layer by layer, all tasks in one matrix product;
autograd's own batched backward, which works for all others, takes three times as long.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocks [T, P_k], one for each parameter; side by side they are the Jacobian [T, P].
Jacobian = list[Tensor]

# Modules whose output depends on the input of the same place only: their Jacobian is a diagonal. ReLU is one as well.
_ELEMENTWISE = (nn.GELU, nn.SiLU, nn.Tanh, nn.Dropout)


class Trunk(Protocol):
    """A shared encoder; `jacobian` and `gradient` are of the last `forward`."""

    parameters: list[nn.Parameter]

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] → [B, H]."""
        ...

    def jacobian(self, at_outputs: Tensor, last_weight_only: bool = False) -> Jacobian:
        """Gradients at the representation [B, T, H] → those at the parameters, or at the last weight matrix only.

        `at_outputs` may be overwritten, and the result be overwritten by the next step.
        """
        ...

    def gradient(self, at_outputs: Tensor) -> list[Tensor]:
        """The gradient at the representation [B, H] → that at each parameter, flat [P_k]."""
        ...


def build_trunk(encoder: nn.Module, precision: torch.dtype | None = None) -> Trunk:
    """The fastest trunk for `encoder`; `precision` is the type that autocast computes in, if any."""
    blocks = getattr(encoder, "blocks", None)
    if precision is None and isinstance(blocks, nn.Sequential) and _is_chain(encoder, blocks):
        return Chain(blocks)
    return Autograd(encoder)


def _is_chain(encoder: nn.Module, blocks: nn.Sequential) -> bool:
    """Whether `encoder` is its `blocks` one after another, all of them trained: two rows are passed through both."""
    leaves = _leaves(blocks)
    parameters = list(blocks.parameters())
    if (
        not isinstance(leaves[0], nn.Linear)
        or [id(p) for module in leaves for p in module.parameters()] != [id(p) for p in encoder.parameters()]
        or not all(parameter.requires_grad for parameter in parameters)
    ):
        return False
    like = leaves[0].weight
    rows = torch.linspace(-1, 1, 2 * leaves[0].in_features, dtype=like.dtype, device=like.device).view(2, -1)
    for training in (True, False):
        results = []
        for module in (copy.deepcopy(encoder).train(training), copy.deepcopy(blocks).train(training)):
            with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(0)
                results.append(module(rows))
        if results[0].dim() != 2 or not torch.equal(*results):
            return False
    return True


class Autograd:
    """Any encoder: one batched backward pass, or one per task where the encoder does not allow it."""

    def __init__(self, encoder: nn.Module):
        self._encoder = encoder
        self.parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._gradients = batched_gradients()

    def forward(self, features: Tensor) -> Tensor:
        self._outputs = self._encoder(features)
        return self._outputs

    def jacobian(self, at_outputs: Tensor, last_weight_only: bool = False) -> Jacobian:
        parameters = self.parameters
        if last_weight_only:
            parameters = [parameter for parameter in parameters if parameter.dim() > 1][-1:]
        rows = at_outputs.transpose(0, 1).to(self._outputs.dtype)  # [T, B, H]
        return [gradient.flatten(1) for gradient in self._gradients(self._outputs, parameters, rows)]

    def gradient(self, at_outputs: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            self._outputs,
            self.parameters,
            at_outputs.to(self._outputs.dtype),
            allow_unused=True,
            materialize_grads=True,
        )
        return [gradient.flatten() for gradient in gradients]


class Chain:
    """A `Sequential`, nested or not, of modules [B, in] → [B, out].

    Linear layers never enter autograd's graph. An elementwise module's derivative [B, H] is taken once, for all tasks.
    What is neither (normalisation) goes through autograd, alone.
    """

    def __init__(self, blocks: nn.Sequential):
        self._modules = list(_leaves(blocks))
        self.parameters = [parameter for module in self._modules for parameter in module.parameters()]
        trained = [index for index, module in enumerate(self._modules) if any(True for _ in module.parameters())]
        self._first = trained[0]  # below it no gradient is needed
        self._last = max(i for i, module in enumerate(self._modules) if isinstance(module, nn.Linear))
        self._gradients = batched_gradients()
        self._memory: dict[tuple[str, int, tuple[int, int]], Tensor] = {}

    def forward(self, features: Tensor) -> Tensor:
        self._tape: list[tuple[Tensor, Tensor]] = []  # each module's inputs and outputs
        values = features
        for module in self._modules:
            inputs = values.detach()
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    values = F.linear(inputs, module.weight, module.bias)
            elif isinstance(module, nn.ReLU):
                values = torch.relu(inputs)
            else:
                with torch.enable_grad():
                    values = module(inputs.requires_grad_())
            self._tape.append((inputs, values))
        return values.detach()

    def jacobian(self, at_outputs: Tensor, last_weight_only: bool = False) -> Jacobian:
        blocks: Jacobian = []  # from the last parameter to the first
        delta = at_outputs  # [B, T, ·]
        rows, tasks = delta.shape[:2]
        for index in range(len(self._modules) - 1, self._first - 1, -1):
            module, (inputs, outputs) = self._modules[index], self._tape[index]
            if isinstance(module, nn.Linear):
                flat = delta.reshape(rows, -1)  # [B, T·out]
                weight = self._workspace("weight", index, (flat.shape[1], module.in_features), delta)
                torch.mm(flat.T, inputs, out=weight)
                if last_weight_only and index == self._last:
                    return [weight.view(tasks, -1)]
                if module.bias is not None:
                    blocks.append((flat.T @ flat.new_ones(rows)).view(tasks, -1))
                blocks.append(weight.view(tasks, -1))  # [T, out·in]
                if index > self._first:
                    below = self._workspace("below", index, (rows * tasks, module.in_features), delta)
                    torch.mm(flat.view(rows * tasks, -1), module.weight.detach(), out=below)
                    delta = below.view(rows, tasks, -1)
            elif isinstance(module, nn.ReLU):
                delta = delta.mul_(outputs.sign().unsqueeze(1))  # its slope is 0 or 1, and its output tells which
            elif isinstance(module, _ELEMENTWISE):
                if module.training or not isinstance(module, nn.Dropout):
                    (slope,) = torch.autograd.grad(outputs, inputs, torch.ones_like(outputs), retain_graph=True)
                    delta = delta.mul_(slope.unsqueeze(1))
            else:
                parameters = list(module.parameters())
                beneath, *own = self._gradients(outputs, [inputs, *parameters], delta.transpose(0, 1))
                blocks.extend(gradient.flatten(1) for gradient in reversed(own))
                delta = beneath.transpose(0, 1)
        return blocks[::-1]

    def gradient(self, at_outputs: Tensor) -> list[Tensor]:
        return [block[0].clone() for block in self.jacobian(at_outputs.unsqueeze(1))]

    def _workspace(self, name: str, index: int, shape: tuple[int, int], like: Tensor) -> Tensor:
        """Memory that is kept from step to step: a fresh megabyte costs more in page faults than its arithmetic."""
        key = (name, index, shape)
        if key not in self._memory:
            self._memory[key] = like.new_empty(shape)
        return self._memory[key]


def batched_gradients() -> Callable[[Tensor, Sequence[Tensor], Tensor], list[Tensor]]:
    """A function (outputs, inputs, rows [T, *outputs]) → the T gradients of each input, [T, *input]; the graph is kept.

    One batched backward pass as long as that works. Some operations have no batching rule; when the first of them is
    met, and ever after, it is one pass per row. What fails that way as well is a fault, and is raised.
    """
    can_batch = True

    def gradients(outputs: Tensor, inputs: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        nonlocal can_batch

        def backward(row: Tensor, batched: bool = False) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                outputs,
                inputs,
                row,
                retain_graph=True,
                is_grads_batched=batched,
                allow_unused=True,
                materialize_grads=True,
            )

        if can_batch:
            try:
                return list(backward(rows, batched=True))
            except RuntimeError:
                can_batch = False
        return [torch.stack(column) for column in zip(*map(backward, rows), strict=True)]

    return gradients


def _leaves(blocks: nn.Sequential) -> list[nn.Module]:
    leaves: list[nn.Module] = []
    for module in blocks:
        leaves.extend(_leaves(module) if isinstance(module, nn.Sequential) else [module])
    return leaves
