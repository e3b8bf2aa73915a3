"""Convolutions of many tasks at once, each with kernels of its own, whose derivatives to any order are as fast as they.

For strided ones. The patches of the images are laid out once, and used for the outputs and for all that is derived of
the kernels: both are products of matrices. Channels are innermost in memory, where patches are copied fast and the
derivative by the images costs as much as the convolution, not two to four times as much. Called by `stacked`; knows
nothing of networks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Places = tuple[Any, Any, Any]  # stride, padding and dilation, each of height and width, as torch has them


def convolution_by_products(images: Tensor, weight: Tensor, bias: Tensor | None, places: Places) -> Tensor:
    """[T, N, in, H, W], [T, out, in, h, w] → [T, N, out, H', W']."""
    kernel = list(weight.shape[-2:])
    places = list(places[0]), list(places[1]), list(places[2])
    factors = weight.permute(0, 1, 3, 4, 2).flatten(2)
    outputs = _Outputs.apply(images.permute(0, 1, 3, 4, 2), None, factors, kernel, places)
    if bias is not None:
        outputs = outputs + bias.unsqueeze(1)
    extents = output_size(list(images.shape[3:]), kernel, places)
    return outputs.unflatten(1, (images.shape[1], *extents)).permute(0, 1, 4, 2, 3)


# --- a convolution and its derivatives --------------------------------------------------------------------------------
# Of images [T, N, H, W, C], factors [T, O, K] and outputs [T, R, O] any two make the third, and its derivatives are the
# others. R = N·H'·W' patches have K = h·w·C numbers each: the columns [T, R, K], which go along with their images.


class _Outputs(torch.autograd.Function):
    """Outputs of images and factors."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, columns: Tensor | None, factors: Tensor, kernel: list[int], places: Places
    ) -> Tensor:
        columns = _columns(images, kernel, *places) if columns is None else columns
        ctx.frame = kernel, places
        ctx.save_for_backward(images, columns, factors)
        return products(columns, factors)

    @staticmethod
    def backward(ctx: Any, outputs: Tensor) -> tuple[Tensor | None, ...]:
        images, columns, factors = ctx.saved_tensors
        return (
            _Images.apply(outputs, factors, list(images.shape), *ctx.frame) if ctx.needs_input_grad[0] else None,
            None,
            _Factors.apply(outputs, images, columns, *ctx.frame) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class _Images(torch.autograd.Function):
    """Images of outputs and factors."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, factors: Tensor, shape: list[int], kernel: list[int], places: Places
    ) -> Tensor:
        ctx.frame = kernel, places
        ctx.save_for_backward(outputs, factors)
        return _images(outputs, factors, shape, kernel, *places)

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> tuple[Tensor | None, ...]:
        outputs, factors = ctx.saved_tensors
        kernel, places = ctx.frame
        columns = _columns(images.detach(), kernel, *places)
        return (
            _Outputs.apply(images, columns, factors, *ctx.frame) if ctx.needs_input_grad[0] else None,
            _Factors.apply(outputs, images, columns, *ctx.frame) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


class _Factors(torch.autograd.Function):
    """Factors of outputs and images."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, images: Tensor, columns: Tensor, kernel: list[int], places: Places
    ) -> Tensor:
        ctx.frame = kernel, places
        ctx.save_for_backward(outputs, images, columns)
        return products(outputs.mT, columns.mT)

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        outputs, images, columns = ctx.saved_tensors
        return (
            _Outputs.apply(images, columns, factors, *ctx.frame) if ctx.needs_input_grad[0] else None,
            _Images.apply(outputs, factors, list(images.shape), *ctx.frame) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


# --- what they are made of --------------------------------------------------------------------------------------------
# Each is one operation to the compiler, which makes them several times slower together with what is around them.

_LONG = 48  # the shortest side of a product from which one task at a time repays the calls
SHORT = 16  # the rows of a result below which MKL is up to six times faster at its transpose


@torch.library.custom_op("polyshot::products", mutates_args=())
def products(left: Tensor, right: Tensor) -> Tensor:
    """[T, R, K], [T, C, K] → [T, R, C]."""
    sides = (*left.shape[1:], right.shape[1])
    if left.device.type == "cpu" and left.dtype == torch.float32 and _ONEDNN and min(sides) >= _LONG:
        if right.stride(0) == 0:  # the same for all tasks
            return _onednn(left.flatten(0, 1), right[0]).unflatten(0, left.shape[:2])
        return torch.stack([_onednn(*pair) for pair in zip(left, right, strict=True)])
    if right.shape[1] < SHORT:
        return torch.bmm(right, left.mT).mT.contiguous()
    return torch.bmm(left, right.mT)


@products.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(len(left), left.shape[1], right.shape[1])


_ONEDNN = torch.backends.mkldnn.is_available()


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    """[R, K], [C, K] → [R, C], twice as fast as by MKL, which leaves other makers' processors half of their width."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


@torch.library.custom_op("polyshot::columns", mutates_args=())
def _columns(images: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """[T, N, H, W, C] → [T, R, K]."""
    high, wide = padding
    padded = F.pad(images, (0, 0, wide, wide, high, high))
    tasks, rows, *size, channels = images.shape
    extents = output_size(size, kernel, (stride, padding, dilation))
    task, row, down, across, channel = padded.stride()
    strides = down * stride[0], across * stride[1], down * dilation[0], across * dilation[1]
    patches = padded.as_strided((tasks, rows, *extents, *kernel, channels), (task, row, *strides, channel))
    return patches.clone(memory_format=torch.contiguous_format).flatten(4).flatten(1, 3)


@_columns.register_fake
def _(images: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    tasks, rows, *size, channels = images.shape
    down, across = output_size(size, kernel, (stride, padding, dilation))
    return images.new_empty(tasks, rows * down * across, kernel[0] * kernel[1] * channels)


@torch.library.custom_op("polyshot::images", mutates_args=())
def _images(
    outputs: Tensor,
    factors: Tensor,
    shape: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """[T, R, O], [T, O, K] → [T, N, H, W, C]."""
    tasks, rows, *size, channels = shape
    places = stride, padding, dilation
    extents = output_size(size, kernel, places)
    left = [room % step for room, step in zip(_room(size, kernel, places), stride, strict=True)]
    weights = factors.unflatten(2, (*kernel, channels)).permute(0, 1, 4, 2, 3)
    outputs = outputs.unflatten(1, (rows, *extents))  # [T, N, H', W', O]
    if factors.stride(0) == 0:  # the same for all tasks, whose rows are one batch
        rows_of_all = outputs.flatten(0, 1).permute(0, 3, 1, 2)
        images = F.conv_transpose2d(rows_of_all, weights[0], None, stride, padding, left, 1, dilation)
        return images.permute(0, 2, 3, 1).unflatten(0, (tasks, rows)).contiguous()
    # Tasks are side by side, as groups of channels.
    side_by_side = outputs.permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2)  # [N, T·O, H', W']
    images = F.conv_transpose2d(side_by_side, weights.flatten(0, 1), None, stride, padding, left, tasks, dilation)
    return images.permute(0, 2, 3, 1).unflatten(3, (tasks, channels)).permute(3, 0, 1, 2, 4).contiguous()


@_images.register_fake
def _(outputs: Tensor, _: Tensor, shape: list[int], *__: list[int]) -> Tensor:
    return outputs.new_empty(shape)


def output_size(size: list[int], kernel: list[int], places: Places) -> list[int]:
    """[H', W']."""
    return [room // step + 1 for room, step in zip(_room(size, kernel, places), places[0], strict=True)]


def _room(size: list[int], kernel: list[int], places: Places) -> list[int]:
    """By how many pixels the kernel can be moved down and across."""
    return [
        extent + 2 * edge - apart * (taps - 1) - 1
        for extent, taps, edge, apart in zip(size, kernel, *places[1:], strict=True)
    ]
