"""Pictures as files: what a learner of pictures adapts to, a folder for each class, and the model that it then is.

Used by `polyshot adapt` and `polyshot predict` for learners whose episodes are of pictures. Loading runs no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from polyshot.errors import DataError, RunError
from polyshot.meta.saved import AdaptedModel, SavedLearner

DESCRIPTION = "pictures.json"  # tells a model of pictures from one of a table
_ADAPTED = "weights.pt"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}  # PIL's, by the number of channels


@dataclass(frozen=True)
class PictureModel:
    """A learner of pictures that was adapted to some classes; it predicts files."""

    learner: SavedLearner
    adapted: AdaptedModel

    @classmethod
    def adapt(cls, learner: SavedLearner, folder: Path, steps: int | None = None) -> tuple[PictureModel, int]:
        """From the pictures of `folder`, which has a folder for each class, named like it; and how many they were.

        Raises:
            DataError: when there are none, or they are not of the size that the learner was trained on.
            RunError: for a learner of something else.
        """
        _check(learner)
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [(path, one.name) for one in classes for path in picture_files(one)]
        if not found:
            raise DataError(f"{folder}: has no folder of pictures for each class; put them into folders named like it")
        pictures = read_pictures([path for path, _ in found], learner.shape)
        return cls(learner, learner.adapt(pictures, [name for _, name in found], steps=steps)), len(found)

    def predict(self, pictures: str | Path | pd.DataFrame) -> pd.DataFrame:
        """A row for each picture: its path, the class, and the probability of each class.

        Batch normalisation goes by the pictures that are predicted together.

        Args:
            pictures: a folder; or a table with a column `path` (paths in a CSV file start from its folder).

        Raises:
            DataError: when there are none, or they are not of the size that the learner was trained on.
        """
        paths = _paths(pictures)
        outputs = torch.from_numpy(self.adapted.outputs(read_pictures(paths, self.learner.shape)))
        classes = self.adapted.classes
        assert classes is not None
        probabilities = outputs.softmax(1).numpy()
        columns = {f"probability_{name}": probabilities[:, place] for place, name in enumerate(classes)}
        return pd.DataFrame({"path": map(str, paths), "class": classes[outputs.argmax(1).numpy()], **columns})

    # --- keeping -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        assert self.adapted.classes is not None
        self.learner.save(folder)
        torch.save(self.adapted.state, folder / _ADAPTED)
        description = {"classes": [str(name) for name in self.adapted.classes]}
        (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PictureModel:
        """Read what `save` wrote.

        Raises:
            RunError: when a file of it is missing or damaged.
        """
        learner = SavedLearner.load(folder)
        try:
            classes = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["classes"]
            state = torch.load(folder / _ADAPTED, map_location="cpu", weights_only=True)
        except (OSError, json.JSONDecodeError, RuntimeError, KeyError) as error:
            raise RunError(f"{folder}: the model is damaged ({error}); run `polyshot adapt` again") from error
        return cls(learner, learner.restored(state, np.array(classes)))


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def read_pictures(paths: Sequence[Path], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """[R, channels, height, width] from 0 to 1, in the learner's number of colours.

    Raises:
        DataError: for a file that is no picture, or one of another size.
    """
    return np.stack([_picture(path, *shape) for path in paths])


def _picture(path: Path, channels: int, height: int, width: int) -> NDArray[np.float32]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = file.convert(_MODES[channels])
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}); replace it, or take it away") from error
    if picture.size != (width, height):
        raise DataError(
            f"{path}: is {picture.width}×{picture.height} pixels and the learner was trained on {width}×{height}; "
            "scale the pictures to that size"
        )
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def _paths(pictures: str | Path | pd.DataFrame) -> list[Path]:
    folder = Path()
    if isinstance(pictures, str | Path):
        folder = Path(pictures)
        if folder.is_dir():
            if found := picture_files(folder):
                return found
            raise DataError(f"{folder}: has no pictures ({', '.join(_SUFFIXES)})")
        from polyshot.data.source import read_path

        pictures = read_path(str(folder), Path.cwd())
        folder = folder.parent
    if "path" not in pictures or not len(pictures):
        raise DataError("the table of pictures needs a column 'path' with a row for each; add it, or give a folder")
    return [folder / str(path) for path in pictures["path"]]


def _check(learner: SavedLearner) -> None:
    if len(learner.shape) != 3 or learner.shape[0] not in _MODES or not learner.bytes:
        raise RunError(
            "the learner was trained neither on the groups of a table nor on pictures given as bytes; adapt it in "
            "Python by polyshot.meta.saved.SavedLearner.adapt(x, y)"
        )
