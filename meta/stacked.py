"""Networks applied to many tasks at once, each with weights of its own: the forward pass of the vectorised engine.

Weights are tensors by the names of the network's parameters. Those that differ between tasks have a leading axis of
tasks, the others are as in the network. Layers that are known become batched matrix products and grouped convolutions;
other networks go through `torch.func.vmap`, or task by task where that cannot be trusted. Batch normalisation is by the
statistics of the rows at hand, each task's by itself, unless the weights hold its `running_mean` and `running_var`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from polyshot.meta.convolutions import Places, convolution_by_products, output_size
from polyshot.meta.inserts import FACTORS, ConvolutionWithInsert, LinearWithInsert
from polyshot.models.encoders.mlp import MLPEncoder

Weights = dict[str, Tensor]
Layer = Callable[[Weights, Tensor], Tensor]  # weights, [T, N, ...] → [T, N, ...]
STATISTICS = ("running_mean", "running_var")  # of a batch normalisation, as torch calls them

_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity)


@dataclass(frozen=True)
class StackedForward:
    """A network over the rows of many tasks: `(weights, [T, N, ...]) → [T, N, ...]`, and by which of the three ways."""

    apply: Layer
    way: Literal["stacked", "vmap", "loop"]
    layers: tuple[Layer, ...] = ()  # of a chain of known ones

    def __call__(self, weights: Weights, inputs: Tensor) -> Tensor:
        return self.apply(weights, inputs)

    @property
    def norms(self) -> list[str]:
        """The prefixes of the names of the batch normalisations in a chain of known layers."""
        return [layer.prefix for layer in self.layers if isinstance(layer, _BatchNorm)]

    @property
    def by_products(self) -> bool:
        """Whether convolutions in such a chain want their channels innermost (`meta.convolutions`)."""
        return any(isinstance(layer, _Convolution) and layer.by_products for layer in self.layers)

    def statistics(self, weights: Weights, inputs: Tensor) -> Weights:
        """What these normalise by: `running_mean` and `running_var` [T, C] of each, by the names that torch gives."""
        found: Weights = {}
        for layer in self.layers:
            if isinstance(layer, _BatchNorm):
                found |= layer.statistics(inputs)
            inputs = layer(weights, inputs)
        return found


def stacked_forward(network: nn.Module, prefix: str = "") -> StackedForward:
    """The forward pass of `network`, whose parameters are named with `prefix` in the weights."""
    layers = list(_layers(network, prefix))
    known = [layer for layer in layers if layer is not None]
    if len(known) == len(layers):
        return StackedForward(_chain(known), "stacked", tuple(known))
    network = _without_running_statistics(network)
    if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in network.modules()):
        return StackedForward(_looped(network, prefix), "loop")
    return StackedForward(_vmapped(network, prefix), "vmap")


def _chain(layers: list[Layer]) -> Layer:
    pairs = list(zip(layers, [*layers[1:], None], strict=True))

    def forward(weights: Weights, inputs: Tensor) -> Tensor:
        for layer, following in pairs:
            if isinstance(layer, _Convolution) and isinstance(following, _BatchNorm):
                # What is added to all rows is taken away again, if the norm is by the rows at hand.
                inputs = layer(weights, inputs, with_bias=following.has_statistics(weights))
            else:
                inputs = layer(weights, inputs)
        return inputs

    return forward


# --- layers that are known -------------------------------------------------------------------------------------------


def _layers(module: nn.Module, prefix: str) -> Iterator[Layer | None]:
    """The module's layers in order; None for one that is not known."""
    if type(module) is MLPEncoder:
        yield from _layers(module.blocks, f"{prefix}blocks.")
    elif type(module) is nn.Sequential:
        for name, child in module.named_children():
            yield from _layers(child, f"{prefix}{name}.")
    else:
        yield _layer(module, prefix)


def _layer(module: nn.Module, prefix: str) -> Layer | None:
    weight, bias = f"{prefix}weight", f"{prefix}bias"
    match module:
        case LinearWithInsert() | ConvolutionWithInsert():
            return _with_insert(module, prefix)
        case nn.Linear():
            return lambda weights, inputs: _linear(inputs, weights[weight], weights.get(bias))
        case nn.Conv2d(groups=1, padding_mode="zeros"):
            is_strided = max(module.stride) > 1 and not isinstance(module.padding, str)
            return _Convolution(prefix, _places(module), by_products=is_strided)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return _BatchNorm(prefix, module.eps)
        case nn.LayerNorm(normalized_shape=(_,), elementwise_affine=True):
            return lambda weights, inputs: _layer_norm(inputs, weights[weight], weights[bias], module.eps)
        case nn.MaxPool2d(return_indices=False):
            return lambda weights, inputs: _unfold(module(_fold(inputs)), len(inputs))  # noqa: ARG005
        case nn.AdaptiveAvgPool2d(output_size=1 | (1, 1)):
            return lambda weights, inputs: inputs.mean((3, 4), keepdim=True)  # noqa: ARG005
        case nn.Flatten(start_dim=1, end_dim=-1):
            return lambda weights, inputs: inputs.flatten(2)  # noqa: ARG005
        case _ if type(module) in _ELEMENTWISE:
            return lambda weights, inputs: module(inputs)  # noqa: ARG005
        case _:
            return None


def _with_insert(module: LinearWithInsert | ConvolutionWithInsert, prefix: str) -> Layer:
    names = [f"{prefix}{name}" for name in ("weight", "bias", *FACTORS)]

    def forward(weights: Weights, inputs: Tensor) -> Tensor:
        weight, bias, down, up = map(weights.get, names)
        assert weight is not None and down is not None and up is not None
        if isinstance(module, LinearWithInsert):
            outputs = _linear(inputs, weight, bias)
            if module.kind == "lora":
                return outputs + _linear(_linear(inputs, down, None), up, None)
            return outputs + _linear(F.relu(_linear(outputs, down, None)), up, None)
        outputs = _convolution(inputs, weight, bias, _places(module))
        if module.kind == "lora":
            return outputs + _convolution(_convolution(inputs, down, None, _places(module)), up, None, _POINTWISE)
        return outputs + _convolution(F.relu(_convolution(outputs, down, None, _POINTWISE)), up, None, _POINTWISE)

    return forward


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[T, N, in] → [T, N, out]."""
    if weight.dim() == 2:
        return F.linear(inputs, weight, bias)
    if bias is None:
        return torch.bmm(inputs, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


@dataclass(frozen=True)
class _Convolution:
    prefix: str
    places: Places
    by_products: bool

    def __call__(self, weights: Weights, inputs: Tensor, with_bias: bool = True) -> Tensor:
        bias = weights.get(f"{self.prefix}bias") if with_bias else None
        weight = weights[f"{self.prefix}weight"]
        # What is no group of several has a fast derivative by torch's own.
        by_products = self.by_products and weight.dim() == 5 and len(inputs) > 1
        return (convolution_by_products if by_products else _convolution)(inputs, weight, bias, self.places)


_POINTWISE: Places = ((1, 1), (0, 0), (1, 1))


def _places(module: nn.Conv2d) -> Places:
    return module.stride, module.padding, module.dilation


def _convolution(images: Tensor, weight: Tensor, bias: Tensor | None, places: Places) -> Tensor:
    """[T, N, in, H, W] → [T, N, out, H', W'], with one weight for all tasks or one for each."""
    tasks = len(images)
    weight = weight.contiguous()  # kernels with their channels innermost would have the images laid out so as well
    if weight.shape[-3:].numel() <= _FEW_INPUTS and not isinstance(places[1], str):
        return _by_columns(images, weight, bias, places)
    if weight.dim() == 4:  # the tasks' rows are one batch
        outputs = F.conv2d(_rows(images), weight, bias, *places)
        return outputs.unflatten(0, (-1, tasks)).transpose(0, 1)
    # Tasks are side by side, as groups of channels.
    flat_bias = None if bias is None else bias.flatten()
    outputs = F.conv2d(_fold(images), weight.flatten(0, 1), flat_bias, *places, groups=tasks)
    return _unfold(outputs, tasks)


# Of a kernel. With one channel, a convolution keeps the processor waiting; a product of matrices does not.
_FEW_INPUTS = 32


def _by_columns(images: Tensor, weight: Tensor, bias: Tensor | None, places: Places) -> Tensor:
    """`_convolution` as one product with the patches of the images, which need no gradient in a first layer."""
    stride, padding, dilation = places
    columns = F.unfold(_rows(images), weight.shape[-2:], dilation, padding, stride)  # [N·T, in·h·w, H'·W']
    outputs = torch.matmul(weight.flatten(-3), columns.unflatten(0, (-1, len(images))))  # [N, T, out, H'·W']
    if bias is not None:
        outputs = outputs + bias.unsqueeze(-1)
    return outputs.unflatten(3, output_size(list(images.shape[3:]), list(weight.shape[-2:]), places)).transpose(0, 1)


def _rows(images: Tensor) -> Tensor:
    """[T, N, C, ...] → [N·T, C, ...]; a view of what `_fold` made."""
    return _fold(images).unflatten(1, (len(images), -1)).flatten(0, 1)


@dataclass(frozen=True)
class _BatchNorm:
    """Each task's rows by their own statistics; torch's own, exact to any order where `vmap` over it is not."""

    prefix: str
    epsilon: float

    def __call__(self, weights: Weights, inputs: Tensor) -> Tensor:
        tasks = len(inputs)
        names = ("weight", "bias", *STATISTICS)
        weight, bias, mean, variance = (self._of_channels(weights, name, tasks) for name in names)
        assert weight is not None and bias is not None
        if mean is None and inputs.dim() == 5 and inputs.stride(2) == 1:  # channels innermost: folding would copy
            shape = tasks, 1, -1, 1, 1
            normalised, _ = _Normalised.apply(inputs, self.epsilon)
            return torch.addcmul(bias.view(shape), normalised, weight.view(shape))
        folded = _fold(inputs)
        normalised = F.batch_norm(folded, mean, variance, weight, bias, training=mean is None, eps=self.epsilon)
        return _unfold(normalised, tasks)

    def has_statistics(self, weights: Weights) -> bool:
        return f"{self.prefix}{STATISTICS[0]}" in weights

    def statistics(self, inputs: Tensor) -> Weights:
        rows = inputs.transpose(1, 2).flatten(2)  # [T, C, N...]
        return dict(zip((f"{self.prefix}{name}" for name in STATISTICS), (rows.mean(2), rows.var(2)), strict=True))

    def _of_channels(self, weights: Weights, name: str, tasks: int) -> Tensor | None:
        """A weight [C] or [T, C] for the channels [T·C]."""
        value = weights.get(f"{self.prefix}{name}")
        if value is None:
            return None
        return value.repeat(tasks) if value.dim() == 1 else value.flatten()


class _Normalised(torch.autograd.Function):
    """[T, N, C, H, W] → what is normalised by each task's and channel's mean and deviation, and one over the latter.

    What autograd makes of the formula goes over the rows more often, since it does not know that deviations from a mean
    have no mean. Closed under differentiation: what the derivative is made of is differentiated in the same way.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        centred = inputs - _mean(inputs)
        scale = torch.rsqrt(_mean(centred.square()) + epsilon)
        normalised = centred * scale
        ctx.save_for_backward(normalised, scale)
        return normalised, scale

    @staticmethod
    def backward(ctx: Any, of_normalised: Tensor, of_scale: Tensor) -> tuple[Tensor, None]:
        normalised, scale = ctx.saved_tensors
        along = _mean(of_normalised * normalised) + of_scale * scale * (scale.numel() / normalised.numel())
        return scale * (of_normalised - _mean(of_normalised) - normalised * along), None


def _mean(rows: Tensor) -> Tensor:
    """[T, N, C, H, W] → [T, 1, C, 1, 1]."""
    return rows.mean((1, 3, 4), keepdim=True)


def _layer_norm(inputs: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    normalised = F.layer_norm(inputs, inputs.shape[-1:], eps=epsilon)
    return torch.addcmul(bias.unsqueeze(-2), normalised, weight.unsqueeze(-2))


def _fold(inputs: Tensor) -> Tensor:
    """[T, N, C, ...] → [N, T·C, ...]; a view after the first layer."""
    return inputs.transpose(0, 1).flatten(1, 2)


def _unfold(inputs: Tensor, tasks: int) -> Tensor:
    """[N, T·C, ...] → [T, N, C, ...]."""
    return inputs.unflatten(1, (tasks, -1)).transpose(0, 1)


# --- other networks --------------------------------------------------------------------------------------------------


def _without_running_statistics(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def _split(names: list[str], dimensions: dict[str, int], prefix: str, weights: Weights) -> tuple[Weights, Weights]:
    """The network's weights by its own names: those with an axis of tasks, and those without."""
    own = {name: weights[f"{prefix}{name}"] for name in names}
    stacked = {name: value for name, value in own.items() if value.dim() > dimensions[name]}
    return stacked, {name: value for name, value in own.items() if name not in stacked}


def _vmapped(network: nn.Module, prefix: str) -> Layer:
    dimensions = {name: parameter.dim() for name, parameter in network.named_parameters()}

    def forward(weights: Weights, inputs: Tensor) -> Tensor:
        stacked, shared = _split(list(dimensions), dimensions, prefix, weights)

        def one(own: Weights, rows: Tensor) -> Tensor:
            return functional_call(network, own | shared, (rows,))

        return vmap(one, randomness="different")(stacked, inputs)

    return forward


def _looped(network: nn.Module, prefix: str) -> Layer:
    """Task by task: `vmap` over torch's batch or instance norm has wrong second derivatives (torch 2.15)."""
    dimensions = {name: parameter.dim() for name, parameter in network.named_parameters()}

    def forward(weights: Weights, inputs: Tensor) -> Tensor:
        stacked, shared = _split(list(dimensions), dimensions, prefix, weights)
        return torch.stack(
            [
                functional_call(network, shared | {name: value[task] for name, value in stacked.items()}, (rows,))
                for task, rows in enumerate(inputs)
            ]
        )

    return forward
