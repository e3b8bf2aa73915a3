"""SNIPS: what is asked of a voice assistant, seven intents, and 72 labels of the words of each sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from polyshot.errors import DataError

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
WHERE = (
    "set POLYSHOT_DATA to the folder that holds snips/train, snips/dev and snips/test with the files label, seq.in and "
    "seq.out each (Coucke et al. 2018, split by Goo et al. 2018; the repository MiuLab/SlotGated-SLU has them in "
    "data/snips)"
)


def sentences() -> pd.DataFrame:
    """14,484 sentences: `words`, `slots` (a label for each word), `intent`, and the `split` that papers use."""
    folder = Path(os.environ.get("POLYSHOT_DATA", "")) / "snips"
    if not (folder / "train" / "seq.in").exists():
        raise DataError(f"SNIPS is not there: {WHERE}")
    return pd.concat([_part(folder / name, split) for name, split in SPLITS.items()], ignore_index=True)


def _part(folder: Path, split: str) -> pd.DataFrame:
    words, slots, intent = (
        [line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        for name in ("seq.in", "seq.out", "label")
    )
    return pd.DataFrame({"words": words, "slots": slots, "intent": intent, "split": split})
