"""The tables of the demo, from the data sets that are installed with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

_NAMES = {
    "bp": "pressure",
    "s1": "cholesterol",
    "s3": "hdl",
    "s5": "triglycerides",
    "s6": "glucose",
    "target": "progression",
}


def patients() -> pd.DataFrame:
    """442 patients in random order: who they are, four blood values, and their disease a year later."""
    table = load_diabetes(as_frame=True, scaled=False).frame.rename(columns=_NAMES)
    table["sex"] = table["sex"].map({1: "one", 2: "other"})  # the source does not say which is which
    kept = ["age", "sex", "bmi", *_NAMES.values()]
    return table[kept].sample(frac=1, random_state=0, ignore_index=True)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pictures of 8 × 8 pixels between 0 and 1 [1797, 1, 8, 8], and the digit in each."""
    pictures, labels = load_digits(return_X_y=True)
    return (pictures.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels
