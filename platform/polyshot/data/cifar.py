"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as tables, from the files that torchvision and the authors' page have.

Named by studies as `polyshot.data.cifar:cifar10` and `:cifar100`. It downloads nothing, and of the pickled files it
unpickles arrays and plain values only.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.errors import DataError

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
FILES = {
    "cifar10": {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def cifar10(folder: str | None = None, rows: int | None = None) -> pd.DataFrame:
    """Images of ten classes: `image` (arrays [32, 32, 3]), `class` and `split`, which says `test` of the test images.

    A tenth of the training images are for validation, the last ones.

    Args:
        folder: holds `cifar-10-batches-py`; by default the one that POLYSHOT_DATA names.
        rows: so many training and test images at most, the first ones.
    """
    return _table("cifar10", ["labels"], ["class"], folder, rows)


def cifar100(folder: str | None = None, rows: int | None = None) -> pd.DataFrame:
    """The same of a hundred classes, `class`, in twenty groups, `superclass`; from `cifar-100-python`."""
    return _table("cifar100", ["fine_labels", "coarse_labels"], ["class", "superclass"], folder, rows)


def _table(name: str, keys: list[str], columns: list[str], folder: str | None, rows: int | None) -> pd.DataFrame:
    root = Path(folder if folder is not None else os.environ.get("POLYSHOT_DATA", "")).expanduser() / FOLDERS[name]
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; unpack the Python version of {name.upper().replace('CIFAR', 'CIFAR-')} ({PAGE}) "
            "there, or set POLYSHOT_DATA or 'folder' in data.arguments to the folder that holds it"
        )
    parts = []
    for split, files in FILES[name].items():
        batches = [_unpickled(root / file) for file in files]
        images = np.concatenate([_images(batch, root) for batch in batches])[:rows]
        labels = {
            c: np.concatenate([batch[key] for batch in batches])[:rows] for key, c in zip(keys, columns, strict=True)
        }
        places = np.full(len(images), split, dtype=object)
        if split == "train":
            places[len(images) - max(1, len(images) // 10) :] = "validation"
        parts.append(pd.DataFrame({"image": list(images), **labels, "split": places}))
    return pd.concat(parts, ignore_index=True)


def _images(batch: dict[str, Any], root: Path) -> NDArray[np.uint8]:
    """[N, 32, 32, 3]."""
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{root}: its files do not hold images of 32 × 32 pixels; unpack the archive anew")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _ArraysOnly(pickle.Unpickler):
    """Arrays of NumPy, by their names in the Python 2 that wrote the files and in today's."""

    def find_class(self, module: str, name: str) -> Any:
        from numpy._core.multiarray import _reconstruct  # what NumPy's own pickles name

        allowed = {"_reconstruct": _reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            import codecs

            return codecs.encode
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in batch.items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; unpack the archive ({PAGE}) anew") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is not a file of CIFAR's ({error}); unpack the archive ({PAGE}) anew") from None
