"""Few-shot classification: each task is to tell some classes apart, N ways with K rows of each to learn from.

Classes are divided into splits once: what is tested was never trained on, turned pictures of it included.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyshot.errors import DataError
from polyshot.meta.episodes.base import Episodes, Share, Split, choose, everything
from polyshot.meta.episodes.distortion import NUMBERS, distorted
from polyshot.meta.episodes.members import Members
from polyshot.meta.objectives import CrossEntropy
from polyshot.study.meta import ClassEpisodes

_TURNS = 4  # by 0, 90, 180 and 270 degrees


class Classes:
    """Tasks of `ways` classes, whose labels are 0 … ways − 1 in random order, drawn anew for every task.

    Training tasks have `train_ways`, where the settings say so.
    """

    name = "classes"
    objective = CrossEntropy()

    def __init__(self, inputs: Tensor, labels: NDArray[np.generic], settings: ClassEpisodes):
        """Inputs [R, ...], as bytes (0 to 255, which become 0 to 1) or real numbers, and the class of each row.

        Raises:
            DataError: when a split has fewer classes than ways, or a class fewer rows than a task asks of it; for
                inputs that are no pictures, when these are to be turned or distorted.
        """
        names, owners = np.unique(labels, return_inverse=True)
        self._inputs = inputs
        self.is_bytes = inputs.dtype == torch.uint8
        self._members = Members.of(owners)
        self._settings = settings
        self.shape = tuple(inputs.shape[1:])
        self.outputs = settings.ways
        self.splits = split_classes(len(names), settings)
        self._ways = dict.fromkeys(self.splits, settings.ways) | {"train": settings.train_ways or settings.ways}
        self._query = {"train": settings.query, "validation": settings.test_query, "test": settings.test_query}
        self._turned = _turned_places(self.shape) if settings.rotations else None
        if settings.distort is not None and len(self.shape) != 3:
            raise DataError(
                f"meta.episodes.distort: only pictures can be distorted, got inputs of {list(self.shape)}; leave it out"
            )
        self._check(names)

    def sample(self, split: Split, tasks: int, generator: torch.Generator, share: Share = everything) -> Episodes:
        ways, shots, query = self._ways[split], self._settings.shots, self._query[split]
        turns = 1 if self._turned is None else _TURNS
        of_split = self.splits[split]
        everyone = torch.ones(tasks, len(of_split) * turns, dtype=torch.bool)
        chosen = choose(everyone, ways, generator).flatten()  # [T·W], a class and its turn
        rows, _ = self._members.draw(of_split[chosen // turns], shots + query, generator)
        rows = share(rows.view(tasks, ways, shots + query))
        inputs = self._inputs[rows]  # [T, W, S + Q, ...]
        if self._turned is not None:
            inputs = _turned(inputs, share((chosen % turns).view(tasks, ways)), self._turned)
        if self.is_bytes:
            inputs = inputs.float() / 255
        if self._settings.distort is not None and split == "train":
            numbers = 2 * torch.rand(tasks, ways, shots + query, NUMBERS, generator=generator) - 1
            inputs = distorted(inputs, share(numbers), self._settings.distort)
        labels = torch.arange(ways).expand(len(inputs), ways)
        return Episodes(
            inputs[:, :, :shots].flatten(1, 2),
            labels.repeat_interleave(shots, 1),
            inputs[:, :, shots:].flatten(1, 2),
            labels.repeat_interleave(query, 1),
        )

    def _check(self, names: NDArray[np.generic]) -> None:
        turns = _TURNS if self._settings.rotations else 1
        for split, classes in self.splits.items():
            ways = self._ways[split]
            if len(classes) * turns < ways:
                key = "train_ways" if ways != self._settings.ways else "ways"
                raise DataError(
                    f"meta.episodes: the {split} split has {len(classes)} classes and a task is to tell {ways} apart; "
                    f"lower {key}, or change the shares of the splits"
                )
            needed = self._settings.shots + self._query[split]
            counts = self._members.counts[classes]
            if int(counts.min()) < needed:
                few = names[int(classes[counts.argmin()])]
                raise DataError(
                    f"meta.episodes: class {few!s} has {int(counts.min())} rows and a task of the {split} split takes "
                    f"{needed} (shots and query); lower them, or leave the class out"
                )


def split_classes(classes: int, settings: ClassEpisodes) -> Mapping[Split, Tensor]:
    """The class numbers of each split, drawn by `settings.seed`.

    Raises:
        DataError: when validation and test leave no class to train on.
    """
    sizes = [
        share if isinstance(share, int) else max(1, round(share * classes))
        for share in (settings.validation, settings.test)
    ]
    if sum(sizes) >= classes:
        raise DataError(
            f"meta.episodes: validation and test take {sum(sizes)} of {classes} classes and leave none to train on; "
            "lower them"
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(settings.seed))
    validation, test, train = order.split([*sizes, classes - sum(sizes)])
    return {"train": train, "validation": validation, "test": test}


def _turned_places(shape: tuple[int, ...]) -> Tensor:
    """Which pixel goes where when a picture of `shape` is turned, for each turn: [4, pixels].

    Raises:
        DataError: for inputs that are no square pictures.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise DataError(f"meta.episodes.rotations: only square pictures can be turned, got inputs of {list(shape)}")
    pixels = torch.arange(shape[0] * shape[1] * shape[2]).view(shape)
    return torch.stack([pixels.rot90(turn, (1, 2)).flatten() for turn in range(_TURNS)])


def _turned(inputs: Tensor, turns: Tensor, places: Tensor) -> Tensor:
    """Pictures [T, W, R, ...], each class turned by its own of `turns` [T, W]."""
    flat = inputs.flatten(3)
    return flat.gather(3, places[turns].unsqueeze(2).expand_as(flat)).view_as(inputs)
