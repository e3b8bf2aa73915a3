"""Omniglot (Lake, Salakhutdinov & Tenenbaum, Science 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

Read from `omniglot28.npz` in the folder that POLYSHOT_DATA names, or downloaded by torchvision.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyshot.errors import ResourceError

SIZE = 28
FILE = "omniglot28.npz"


def omniglot() -> tuple[Tensor, NDArray[np.int64]]:
    """Pictures [32460, 1, 28, 28] as bytes, ink 255 on 0, and the character of each.

    Raises:
        ResourceError: when they are neither on disk nor can be downloaded.
    """
    folder = os.environ.get("POLYSHOT_DATA")
    if folder and (Path(folder) / FILE).exists():
        return _packed(Path(folder) / FILE)
    return _downloaded(Path(folder or "~/.cache/polyshot").expanduser())


def _packed(path: Path) -> tuple[Tensor, NDArray[np.int64]]:
    """Two pixels of 4 bits a byte."""
    with np.load(path, allow_pickle=False) as file:
        packed, alphabet, character = file["images4"], file["alphabet"], file["character"]
    pixels = np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), 1, SIZE, SIZE) * np.uint8(17)
    return torch.from_numpy(pixels), alphabet.astype(np.int64) * 1000 + character


def _downloaded(folder: Path) -> tuple[Tensor, NDArray[np.int64]]:
    from torchvision.datasets import Omniglot

    pictures, labels = [], []
    try:
        for part, background in enumerate((True, False)):
            for picture, label in Omniglot(str(folder), background=background, download=True):
                small = picture.convert("L").resize((SIZE, SIZE))
                pictures.append(255 - np.asarray(small, dtype=np.uint8))
                labels.append(part * 10_000 + label)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"meta.episodes.source: Omniglot cannot be downloaded to {folder} ({error}); put {FILE} into a folder and "
            "name the folder in POLYSHOT_DATA"
        ) from error
    return torch.from_numpy(np.stack(pictures)).unsqueeze(1), np.array(labels)
