"""Convolutions of many tasks at once, each with kernels of its own, as products of matrices with patches of the images.

For strided ones: the derivative of a grouped convolution by its images takes a processor two to four times as long as
the convolution. Here all derivatives, to any order, are such products of the same shapes, and channels are innermost in
memory, where patches are copied fast. Called by `stacked`; knows nothing of networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Places = tuple[Any, Any, Any]  # stride, padding and dilation, each of height and width, as torch has them


def convolution_by_products(images: Tensor, weight: Tensor, bias: Tensor | None, places: Places) -> Tensor:
    """[T, N, in, H, W] → [T, N, out, H', W'], with one weight [out, in, h, w] for all tasks or one for each."""
    kernel = list(weight.shape[-2:])
    columns = _Columns.apply(images.permute(0, 1, 3, 4, 2), kernel, places)
    factors = weight.flatten(-2).transpose(-1, -2).flatten(-2)  # [(T,) out, h·w·in]
    if weight.dim() == 4:
        outputs = F.linear(columns, factors, bias)
    else:
        outputs = _Product.apply(columns, factors)
        outputs = outputs if bias is None else outputs + bias.unsqueeze(1)
    extents = _extents(list(images.shape[3:]), kernel, places)
    return outputs.unflatten(1, (images.shape[1], *extents)).permute(0, 1, 4, 2, 3)


# --- products whose derivatives have their factors' layout ------------------------------------------------------------
# Of columns [T, R, K], factors [T, O, K] and outputs [T, R, O] any two make the third, and its derivatives the others.


class _Product(torch.autograd.Function):
    """Outputs of columns and factors."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(columns, factors)
        return torch.bmm(columns, factors.mT)

    @staticmethod
    def backward(ctx: Any, outputs: Tensor) -> tuple[Tensor | None, ...]:
        columns, factors = ctx.saved_tensors
        return (
            _ProductColumns.apply(outputs, factors) if ctx.needs_input_grad[0] else None,
            _ProductFactors.apply(outputs, columns) if ctx.needs_input_grad[1] else None,
        )


class _ProductColumns(torch.autograd.Function):
    """Columns of outputs and factors."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(outputs, factors)
        return torch.bmm(outputs, factors)

    @staticmethod
    def backward(ctx: Any, columns: Tensor) -> tuple[Tensor | None, ...]:
        outputs, factors = ctx.saved_tensors
        return (
            _Product.apply(columns, factors) if ctx.needs_input_grad[0] else None,
            _ProductFactors.apply(outputs, columns) if ctx.needs_input_grad[1] else None,
        )


class _ProductFactors(torch.autograd.Function):
    """Factors of outputs and columns."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(outputs, columns)
        return torch.bmm(outputs.mT, columns)

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        outputs, columns = ctx.saved_tensors
        return (
            _Product.apply(columns, factors) if ctx.needs_input_grad[0] else None,
            _ProductColumns.apply(outputs, factors) if ctx.needs_input_grad[1] else None,
        )


# --- patches ----------------------------------------------------------------------------------------------------------


class _Columns(torch.autograd.Function):
    """[T, N, H, W, C] → the patches under a kernel, [T, N·H'·W', h·w·C]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: list[int], places: Places) -> Tensor:
        ctx.frame = list(images.shape), kernel, places
        _, (high, wide), _ = places
        padded = F.pad(images, (0, 0, wide, wide, high, high))
        patches = [padded[:, :, rows, columns] for rows, columns in _taps(*ctx.frame)]
        return torch.stack(patches, 4).flatten(4).flatten(1, 3)

    @staticmethod
    def backward(ctx: Any, columns: Tensor) -> tuple[Tensor | None, ...]:
        return _Images.apply(columns, *ctx.frame), None, None


class _Images(torch.autograd.Function):
    """The transpose of `_Columns`: every pixel the sum of what the patches have of it."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, shape: list[int], kernel: list[int], places: Places) -> Tensor:
        ctx.kernel, ctx.places = kernel, places
        return _summed(columns, shape, kernel, *map(list, places))

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> tuple[Tensor | None, ...]:
        return _Columns.apply(images, ctx.kernel, ctx.places), None, None, None


@torch.library.custom_op("polyshot::summed_patches", mutates_args=())
def _summed(
    columns: Tensor, shape: list[int], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """One operation to the compiler: what it makes of the sums is several times slower."""
    places = stride, padding, dilation
    tasks, rows, height, width, channels = shape
    high, wide = padding
    padded = columns.new_zeros(tasks, rows, height + 2 * high, width + 2 * wide, channels)
    extents = _extents([height, width], kernel, places)
    patches = columns.view(tasks, rows, *extents, -1, channels).unbind(4)
    for patch, (down, across) in zip(patches, _taps(shape, kernel, places), strict=True):
        padded[:, :, down, across] += patch
    return padded[:, :, high : high + height, wide : wide + width].contiguous()


@_summed.register_fake
def _(columns: Tensor, shape: list[int], *_: list[int]) -> Tensor:
    return columns.new_empty(shape)


def _taps(shape: list[int], kernel: list[int], places: Places) -> Iterator[tuple[slice, slice]]:
    """For each place of the kernel, the rows and columns of a padded image that it comes to lie on."""
    steps, _, spread = places
    extents = _extents(shape[2:4], kernel, places)
    for offsets in itertools.product(*map(range, kernel)):
        starts = [offset * apart for offset, apart in zip(offsets, spread, strict=True)]
        down, across = (
            slice(start, start + (extent - 1) * step + 1, step)
            for start, extent, step in zip(starts, extents, steps, strict=True)
        )
        yield down, across


def _extents(size: list[int], kernel: list[int], places: Places) -> list[int]:
    """[H', W']."""
    return [
        (extent + 2 * edge - apart * (taps - 1) - 1) // step + 1
        for extent, taps, step, edge, apart in zip(size, kernel, *places, strict=True)
    ]
