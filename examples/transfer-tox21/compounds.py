"""Tox21's compounds as Morgan fingerprints, with eleven of the twelve assays or with the one that is held out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from polyshot.errors import DataError, ResourceError

ASSAYS = [
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
]
SOURCE_SHARE = 0.6  # of the compounds; the held-out assay is learnt, and judged, on the others


def compounds(part: str, held_out: str = "SR-MMP", bits: int = 1024) -> pd.DataFrame:
    """`part` is "source", 60 % of the compounds with the assays but one, or "target", the others with that one.

    Columns: f0 … and the assays, missing where they were not run. Compounds without any label are left out.
    """
    path = Path(os.environ.get("POLYSHOT_DATA", "")) / "chem" / "tox21.csv.gz"
    if not path.exists():
        raise DataError(
            "Tox21 is not there: set POLYSHOT_DATA to the folder that holds chem/tox21.csv.gz (MoleculeNet's file; "
            "DeepChem has it at deepchemdata.s3-us-west-1.amazonaws.com/datasets/tox21.csv.gz)"
        )
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError:
        raise ResourceError("fingerprints need RDKit: uv pip install rdkit, or pip install rdkit") from None
    RDLogger.DisableLog("rdApp.*")  # a word about each unusual molecule
    table = pd.read_csv(path).dropna(subset="smiles")
    random = np.random.default_rng(0).random(len(table))
    labels = [assay for assay in ASSAYS if assay != held_out] if part == "source" else [held_out]
    chosen = (random < SOURCE_SHARE) == (part == "source")
    table = table[chosen & table[labels].notna().any(axis=1).to_numpy()]
    molecules = [Chem.MolFromSmiles(smiles) for smiles in table["smiles"]]
    usable = [row for row, molecule in enumerate(molecules) if molecule is not None]
    generator = GetMorganGenerator(radius=2, fpSize=bits)
    prints = np.stack([generator.GetFingerprintAsNumPy(molecules[row]) for row in usable]).astype(float)
    features = pd.DataFrame(prints, columns=[f"f{index}" for index in range(bits)])
    return pd.concat([features, table[labels].iloc[usable].reset_index(drop=True)], axis=1)
