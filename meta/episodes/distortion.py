"""Pictures of training tasks, each distorted a little in its own way: more drawings of a class than there are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from polyshot.study.meta import Distortion

NUMBERS = 6  # that say what becomes of a picture


def distorted(pictures: Tensor, numbers: Tensor, most: Distortion) -> Tensor:
    """Turned, stretched in each direction, slanted and shifted, by bilinear interpolation, with zeros from outside.

    Args:
        pictures: [..., C, H, W], real.
        numbers: [..., 6] from −1 to 1, the parts of what is the `most`.
    """
    height, width = pictures.shape[-2:]
    angle, wide, high, slant, right, down = numbers.flatten(0, -2).unbind(1)
    angle = angle * math.radians(most.degrees)
    cosine, sine = angle.cos(), angle.sin()
    wide, high, slant = 1 + most.stretch * wide, 1 + most.stretch * high, most.stretch * slant
    # From where in a picture each pixel comes, in coordinates from −1 to 1.
    rows = (
        torch.stack([cosine * wide, cosine * slant - sine * high, right * (-2 * most.shift / width)], 1),
        torch.stack([sine * wide, sine * slant + cosine * high, down * (-2 * most.shift / height)], 1),
    )
    flat = pictures.flatten(0, -4)
    grid = F.affine_grid(torch.stack(rows, 1), list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(pictures)
