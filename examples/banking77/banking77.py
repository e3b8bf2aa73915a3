"""Banking77: what customers of a bank ask, 77 intents, with a few labelled sentences of each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from polyshot.errors import DataError

WHERE = (
    "set POLYSHOT_DATA to the folder that holds banking77/train.csv and banking77/test.csv (Casanueva et al. 2020; the "
    "repository PolyAI-LDN/task-specific-datasets has them in banking_data)"
)


def sentences(shots: int, draw: int = 0, names: bool = True) -> pd.DataFrame:
    """`text`, `intent` and `split`: some labelled sentences of each intent, and the 3,080 test sentences.

    No label is left to validate by: one shot of each intent stands there again.

    Args:
        draw: which sentences the shots are.
        names: with the names of the intents (`card arrival`), a further sentence each.
    """
    train, test = (read(part) for part in ("train", "test"))
    random = np.random.default_rng(draw)
    of_intents = [rows.index.to_numpy() for _, rows in train.groupby("intent")]
    chosen = [random.permutation(rows)[:shots] for rows in of_intents]
    parts = [train.loc[np.concatenate(chosen)].assign(split="train")]
    if names:
        intents = pd.Series(sorted(train["intent"].unique()))
        words = intents.str.replace("_", " ").str.lower()
        parts.append(pd.DataFrame({"text": words, "intent": intents, "split": "train"}))
    parts.append(train.loc[[rows[0] for rows in chosen]].assign(split="validation"))
    return pd.concat([*parts, test.assign(split="test")], ignore_index=True)


def read(part: str) -> pd.DataFrame:
    """`text` and `intent` of the part `train` or `test`."""
    path = Path(os.environ.get("POLYSHOT_DATA", "")) / "banking77" / f"{part}.csv"
    if not path.exists():
        raise DataError(f"Banking77 is not there: {WHERE}")
    return pd.read_csv(path).rename(columns={"category": "intent"})
