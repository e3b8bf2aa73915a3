"""From task losses to gradients: the forward pass of one batch, and the one place where `.grad` is filled.

The training loop calls `forward` and `backward` of what `build_backward` returns for its model and its balancer. Which
gradients a balancer's update is made of:

- A `LossBalancer` makes one scalar of the losses, and every parameter gets its gradient.
- A `GramianBalancer` or `JacobianBalancer` combines the tasks' gradients of the *shared* parameters. What belongs to
one
  task alone, its head above all, gets the gradient of that task's own loss, not weighed by the balancer: so do the
  papers that treat the shared parameters apart (MGDA, PCGrad, CAGrad, IMTL-G, Aligned-MTL, UPGrad). The codes of
  Nash-MTL and FairGrad weigh the heads as well, which an optimiser with adaptive rates hardly feels. GradNorm's
  weights are weights of the losses and hold for everything.

With several workers the tasks' gradients are summed over them before they are combined, so that their number does not
change the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from polyshot.balancing.base import Balancer, GramianBalancer, JacobianBalancer, LossBalancer
from polyshot.balancing.trunk import Jacobian, Trunk, batched_gradients, build_trunk
from polyshot.study import Study
from polyshot.study.model import HardSharing

Place = Literal["parameters", "features"]


class Layout(Protocol):
    """Which columns of the outputs [B, O] belong to which task."""

    @property
    def columns(self) -> Sequence[slice]: ...

    @property
    def width(self) -> int: ...


class Model(Protocol):
    """What is asked of a multi-task model: inputs [B, F] → outputs [B, O], by way of `sharing`, then `heads`."""

    sharing: Any
    heads: Any

    @property
    def layout(self) -> Layout: ...

    def __call__(self, features: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def shared_parameters(self) -> list[nn.Parameter]: ...


class Workers(Protocol):
    """The workers of a data-parallel run: how many, and sums over them."""

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor: ...


class _Alone:
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


ALONE = _Alone()


class Backward(Protocol):
    """The two halves of a step that depend on the balancer; `losses` come from the `outputs` of the last `forward`."""

    gramian: np.ndarray | None  # [T, T] of the last step's gradients, where the balancer asked for it

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] → outputs [B, O]."""
        ...

    def backward(self, losses: Tensor, penalty: Tensor | None = None) -> None:
        """Fill `.grad` from this worker's share [T] of the losses, whose sum over workers is the batch's losses.

        `penalty` [] is a further term of the loss, the same on all workers.
        """
        ...


def build_backward(
    study: Study,
    model: Model,
    balancer: Balancer,
    *,
    world: Workers = ALONE,
    compute: Callable[[Tensor], Tensor] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    precision: torch.dtype | None = None,
) -> Backward:
    """How `balancer` turns losses into the gradients of the study's `model`.

    `compute` is the model as it is to be called where one backward pass is all that is needed: compiled, or wrapped so
    that its gradients are averaged over workers. `precision` is autocast's type, if any.
    """
    if isinstance(balancer, LossBalancer):
        return ScalarBackward(model if compute is None else compute, balancer, world, scaler)
    assert isinstance(balancer, GramianBalancer | JacobianBalancer), balancer
    if isinstance(study.model.sharing, HardSharing) and model.heads.places == 1:
        at: Place = getattr(study.balance, "at", "parameters")
        return HardSharingBackward(model, balancer, build_trunk(model.sharing.encoder, precision), at, world)
    return SharedBackward(model, balancer, world)


class ScalarBackward:
    """One scalar and one backward pass. `compute` averages gradients over workers where there are several."""

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        balancer: LossBalancer,
        world: Workers = ALONE,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.forward = compute
        self.gramian: np.ndarray | None = None
        self._balancer = balancer
        self._world = world
        self._scaled = scaler.scale if scaler else lambda loss: loss

    def backward(self, losses: Tensor, penalty: Tensor | None = None) -> None:
        if self._world.size == 1:
            loss = self._balancer(losses)
        else:
            # A function of the batch's losses, of which this worker has a share: slopes first, then ∂L/∂L_t · share.
            # Gradients are averaged over workers; times their number they are those of the batch.
            total = self._world.sum(losses).detach().requires_grad_()
            value = self._balancer(total)
            parameters = [parameter for parameter in self._balancer.parameters() if parameter.requires_grad]
            slopes, *own = torch.autograd.grad(value, [total, *parameters])
            for parameter, gradient in zip(parameters, own, strict=True):
                parameter.grad = self._scaled(gradient)
            loss = self._world.size * torch.dot(slopes, losses)
        self._scaled(loss if penalty is None else loss + penalty).backward()


class HardSharingBackward:
    """One representation h [B, H] for all tasks and stacked linear heads: the Jacobian in closed form down to h.

    An output belongs to one task only, so that a single backward pass to the outputs gives every task's gradient r_t =
    ∂L_t/∂outputs, and the heads' weights that at the features: ∂L_t/∂h = r_t W_t. From there the trunk goes on.

    `at` says where gradients are compared and combined. At the parameters (the papers' own) T backward passes through
    the trunk are needed. At the features only one is, after the gradients were combined: nearly as fast as fixed
    weights. By the chain rule ‖∂L/∂θ‖ ≤ ‖∂h/∂θ‖ ‖∂L/∂h‖: what MGDA minimises there is an upper bound (MGDA-UB, Sener &
    Koltun 2018), and conflict at the features is not the same as conflict at the parameters.
    """

    def __init__(
        self,
        model: Model,
        balancer: GramianBalancer | JacobianBalancer,
        trunk: Trunk,
        at: Place = "parameters",
        world: Workers = ALONE,
    ):
        self._balancer = balancer
        self._trunk = trunk
        self._heads = model.heads
        self._at_features = at == "features"
        self._world = world
        self._head_parameters = list(model.heads.parameters())
        columns = model.layout.columns
        self._columns = columns
        starts = [own.start for own in columns]
        self._single = all(own.stop - own.start == 1 for own in columns)
        self._in_order = self._single and starts == list(range(len(starts)))
        device = model.heads.linear.weight.device
        self._starts = torch.tensor(starts, device=device)
        owner = torch.zeros(model.layout.width, dtype=torch.long)
        for task, own in enumerate(columns):
            owner[own] = task
        self._memory: Tensor | None = None
        self._owner = owner.to(device)  # [O]: the task of each output
        self.gramian: np.ndarray | None = None

    def forward(self, features: Tensor) -> Tensor:
        self._representation = self._trunk.forward(features).detach().requires_grad_()  # [B, H]
        self._outputs = self._heads(self._representation)  # [B, O]
        return self._outputs

    def backward(self, losses: Tensor, penalty: Tensor | None = None) -> None:
        balancer = self._balancer
        losses = balancer.scaled(losses)
        # The sum's gradient at an output is that of the one task that it belongs to.
        residuals, *own = torch.autograd.grad(losses.sum(), [self._outputs, *self._head_parameters])  # [B, O], heads
        weight = self._heads.linear.weight.detach().to(residuals.dtype)  # [O, H]

        if isinstance(balancer, JacobianBalancer):
            at_features = self._at_features_of_each(residuals, weight)  # [B, T, H]
            if self._at_features:
                rows, tasks, width = at_features.shape
                jacobian = at_features.transpose(0, 1).reshape(tasks, -1)  # [T, B·H]: every worker has rows of its own
                combined = balancer.aggregate(jacobian).view(rows, width)
                shared = self._summed(self._trunk.gradient(combined))
            else:
                jacobian = torch.cat(self._summed(self._trunk.jacobian(at_features)), 1)  # [T, P]
                shared = list(balancer.aggregate(jacobian).split([p.numel() for p in self._trunk.parameters]))
        elif self._at_features or balancer.at_last_layer:
            if balancer.at_last_layer:
                (last,) = self._summed(
                    self._trunk.jacobian(self._at_features_of_each(residuals, weight), last_weight_only=True)
                )
                weights = self._weigh(last @ last.T, losses)
                own = self._weighted_heads(residuals, weights[self._owner])
            else:
                # ⟨r_t W_t, r_s W_s⟩ summed over rows is ⟨r_tᵀ r_s, W_t W_sᵀ⟩: no [T, B, H] is ever made.
                by_output = self._world.sum((residuals.T @ residuals) * (weight @ weight.T))  # [O, O]
                weights = self._weigh(self._by_task(by_output), losses)
            shared = self._summed(self._trunk.gradient((residuals * weights[self._owner]) @ weight))
        else:
            blocks = self._summed(self._trunk.jacobian(self._at_features_of_each(residuals, weight)))
            weights = self._weigh(_gramian(blocks), losses)
            shared = [weights @ block for block in blocks]

        _assign(self._trunk.parameters, shared)
        _assign(self._head_parameters, self._summed(own))
        if penalty is not None and penalty.requires_grad:
            penalty.backward()

    def _at_features_of_each(self, residuals: Tensor, weight: Tensor) -> Tensor:
        """∂L_t/∂h [B, T, H]."""
        if self._in_order:
            shape = (len(residuals), *weight.shape)
            if self._memory is None or self._memory.shape != shape:  # a fresh megabyte costs more than the product
                self._memory = residuals.new_empty(shape)
            return torch.mul(residuals.unsqueeze(2), weight, out=self._memory)
        if self._single:
            return residuals[:, self._starts].unsqueeze(2) * weight[self._starts]
        return torch.stack([residuals[:, columns] @ weight[columns] for columns in self._columns], 1)

    def _by_task(self, by_output: Tensor) -> Tensor:
        """[O, O] → [T, T]: sums over each pair of tasks' outputs."""
        if self._in_order:
            return by_output
        tasks = len(self._columns)
        by_row = by_output.new_zeros(tasks, len(by_output)).index_add_(0, self._owner, by_output)
        return by_output.new_zeros(tasks, tasks).index_add_(1, self._owner, by_row)

    def _weighted_heads(self, residuals: Tensor, weights: Tensor) -> list[Tensor]:
        """The heads' gradients of the losses weighed by `weights` [O], one for each output."""
        return list(torch.autograd.grad(self._heads(self._representation), self._head_parameters, residuals * weights))

    def _weigh(self, gramian: Tensor, losses: Tensor) -> Tensor:
        assert isinstance(self._balancer, GramianBalancer)
        self.gramian, weights = _weigh(self._balancer, gramian, self._world.sum(losses))
        return weights

    def _summed(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return _summed(parts, self._world)


class SharedBackward:
    """Any sharing scheme: the Jacobian of the losses at the shared parameters, by autograd alone."""

    def __init__(self, model: Model, balancer: GramianBalancer | JacobianBalancer, world: Workers = ALONE):
        self.forward = model.__call__
        self._balancer = balancer
        self._world = world
        self._shared = [parameter for parameter in model.shared_parameters() if parameter.requires_grad]
        shared = {id(parameter) for parameter in self._shared}
        self._own = [p for p in model.parameters() if id(p) not in shared and p.requires_grad]
        self._last = [p for p in self._shared if p.dim() > 1][-1:]
        self._gradients = batched_gradients()
        self.gramian: np.ndarray | None = None

    def backward(self, losses: Tensor, penalty: Tensor | None = None) -> None:
        balancer = self._balancer
        losses = balancer.scaled(losses)
        if isinstance(balancer, GramianBalancer) and balancer.at_last_layer and self._last:
            (last,) = self._jacobian(losses, self._last)
            self.gramian, weights = _weigh(balancer, last @ last.T, self._world.sum(losses))
            everything = [*self._shared, *self._own]
            gradients = torch.autograd.grad(
                losses, everything, weights.to(losses.dtype), allow_unused=True, materialize_grads=True
            )
            _assign(everything, _summed(gradients, self._world))
        else:
            if self._shared:  # tasks that share nothing have nothing to agree on
                blocks = self._jacobian(losses, self._shared)
                if isinstance(balancer, JacobianBalancer):
                    combined = balancer.aggregate(torch.cat(blocks, 1))
                    shared = list(combined.split([parameter.numel() for parameter in self._shared]))
                else:
                    gramian = _gramian(blocks)
                    self.gramian, weights = _weigh(balancer, gramian, self._world.sum(losses))
                    shared = [weights @ block for block in blocks]
                _assign(self._shared, shared)
            own = torch.autograd.grad(losses.sum(), self._own, allow_unused=True, materialize_grads=True)
            _assign(self._own, _summed(own, self._world))
        if penalty is not None and penalty.requires_grad:
            penalty.backward()

    def _jacobian(self, losses: Tensor, parameters: Sequence[nn.Parameter]) -> Jacobian:
        rows = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        gradients = self._gradients(losses, parameters, rows)
        return _summed([gradient.flatten(1) for gradient in gradients], self._world)


def _gramian(blocks: Jacobian) -> Tensor:
    """J Jᵀ [T, T] of the Jacobian's blocks."""
    return torch.stack([block @ block.T for block in blocks]).sum(0)


def _weigh(balancer: GramianBalancer, gramian: Tensor, losses: Tensor) -> tuple[np.ndarray, Tensor]:
    """The Gramian [T, T] in float64, and the balancer's weights [T] as a tensor like it."""
    in_double = gramian.double().cpu().numpy()
    weights = balancer.weights(in_double, losses.detach().double().cpu().numpy())
    return in_double, torch.from_numpy(weights).to(gramian)


def _summed(parts: Sequence[Tensor], world: Workers) -> list[Tensor]:
    """Each part summed over workers, in a single exchange."""
    if world.size == 1:
        return list(parts)
    flat = world.sum(torch.cat([part.flatten() for part in parts]))
    return [piece.view_as(part) for piece, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]


def _assign(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
