"""Columns of images as bytes: files or arrays, decoded, resized, and packed four bytes to a number of the row.

Called by `Features`, which has the brightness of the training rows' pixels from here. Nothing computes with a packed
row before an encoder unpacks a batch of it: in memory an image takes a byte for each pixel and channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.columns import row_name
from polyshot.data.inputs import ImagePlace
from polyshot.errors import DataError
from polyshot.study.data import Images

Pixels = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FITTED = 10_000  # images whose pixels tell means and deviations
_MODES = {1: "L", 3: "RGB"}
_IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}  # of grey: the means of both


class ImageReading:
    """How a column of images is read: paths of files, or arrays [height, width] or [height, width, channels] of bytes.

    A missing image is black.
    """

    def __init__(
        self,
        settings: Images,
        folder: Path = Path(),
        means: Sequence[float] = (),
        deviations: Sequence[float] = (),
    ):
        """
        Args:
            folder: where relative paths start from.
            means, deviations: of each channel, from 0 to 1; what `fit` finds.
        """
        self.settings = settings
        self.means, self.deviations = tuple(means), tuple(deviations)
        self._folder = folder

    def fit(self, column: pd.Series) -> ImageReading:
        """The same reading with the means and deviations of the column's pixels, or ImageNet's if the study says so."""
        of_images = self._moments(column) if self.settings.normalise == "data" else _IMAGENET[self.settings.channels]
        return ImageReading(self.settings, self._folder, *of_images)

    def _moments(self, column: pd.Series) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel."""
        known = column.dropna()
        pixels = self._unpacked(self.read(known.iloc[:: -(-len(known) // _FITTED)]))  # [N, C, S, S]
        levels = np.arange(256) / 255
        means, deviations = [], []
        for channel in range(pixels.shape[1]):
            count = np.bincount(pixels[:, channel].ravel(), minlength=256)
            means.append(float(np.average(levels, weights=count)))
            variance = float(np.average((levels - means[-1]) ** 2, weights=count))
            deviations.append(max(variance**0.5, 1 / 255))  # images of one colour
        return means, deviations

    @property
    def width(self) -> int:
        return self.settings.channels * self.settings.size**2 // 4

    def place(self, column: str) -> ImagePlace:
        settings = self.settings
        return ImagePlace(
            column, settings.channels, settings.size, self.means, self.deviations, settings.flip, settings.shift
        )

    def names(self, column: str) -> list[str]:
        return [f"{column}: bytes {4 * place}" for place in range(self.width)]

    def read(self, column: pd.Series) -> NDArray[np.float32]:
        """[N, C · S² / 4], the bytes [C, S, S] of each image.

        Raises:
            DataError: for a file that is not there or is no image.
        """
        packed = np.zeros((len(column), self.width), dtype=np.float32)
        pixels = self._unpacked(packed)
        for place, (row, value) in enumerate(column.items()):
            if isinstance(value, np.ndarray | list) or not pd.isna(value):
                pixels[place] = self._pixels(value, f"the column '{column.name}' in {row_name(row)}")
        return packed

    def _unpacked(self, packed: NDArray[np.float32]) -> Pixels:
        size = self.settings.size
        return packed.view(np.uint8).reshape(len(packed), self.settings.channels, size, size)

    def _pixels(self, value: Any, place: str) -> Pixels:
        """[C, S, S]."""
        from PIL import Image

        if isinstance(value, np.ndarray | list):
            array = np.asarray(value)
            is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
            if not is_image or array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
                raise DataError(
                    f"{place} holds an array of shape {list(array.shape)} of {array.dtype}; give whole numbers from 0 "
                    "to 255 of shape [height, width] or [height, width, 3], or the path of a file"
                )
            return self._resized(Image.fromarray(array.astype(np.uint8)))
        path = self._folder / Path(str(value)).expanduser()
        try:
            with Image.open(path) as image:
                return self._resized(image)
        except FileNotFoundError:
            raise DataError(f"{place} names '{path}', which is not there; correct the path or leave it empty") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
            what = str(error).partition("\n")[0]
            raise DataError(
                f"{place} names '{path}', which is no image that can be read ({what}); replace it"
            ) from None

    def _resized(self, image: Any) -> Pixels:
        from PIL import Image

        image = image.convert(_MODES[self.settings.channels])
        size = (self.settings.size, self.settings.size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- folders ---------------------------------------------------------------------------------------------------------


def class_folders(folder: Path) -> pd.DataFrame | None:
    """The images of a folder that has a folder for each class, as a table of `image` (paths) and `class`.

    None where no folder in it has images.

    Raises:
        DataError: when there is one class only.
    """
    found = {
        inside.name: [file for file in sorted(inside.rglob("*")) if file.suffix.lower() in SUFFIXES]
        for inside in sorted(folder.iterdir())
        if inside.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        return None
    if len(found) == 1:
        raise DataError(
            f"{folder}: has images in one folder only, '{next(iter(found))}', where each class has a folder of its "
            "own; add the folders of other classes"
        )
    rows = [(str(file.resolve()), name) for name, files in found.items() for file in files]
    return pd.DataFrame(rows, columns=["image", "class"])
