"""The tables of `mtl_quality.py`, each a function that a study can name as its source.

School and Tox21 are read from the folder that the environment variable POLYSHOT_DATA names.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

ASSAYS = [
    *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
    *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
]
SCHOOLS = 139


def folder() -> Path:
    """Where the data sets are.

    Raises:
        FileNotFoundError: when POLYSHOT_DATA names no folder.
    """
    path = Path(os.environ.get("POLYSHOT_DATA", ""))
    if not os.environ.get("POLYSHOT_DATA") or not path.is_dir():
        raise FileNotFoundError("set POLYSHOT_DATA to the folder that holds school/school.mat and chem/tox21.csv.gz")
    return path


def school() -> pd.DataFrame:
    """ILEA: 15,362 pupils of 139 schools; the exam score of each school is a task, known for its own pupils.

    Columns: x0 … x27, school (its number) and the targets s0 … s138.
    """
    from scipy.io import loadmat

    content = loadmat(folder() / "school" / "school.mat")
    parts = []
    for number, (features, scores) in enumerate(zip(content["X"][0], content["Y"][0], strict=True)):
        part = pd.DataFrame(features.astype(float), columns=[f"x{index}" for index in range(features.shape[1])])
        parts.append(part.assign(school=number, **{f"s{number}": scores[:, 0].astype(float)}))
    return pd.concat(parts, ignore_index=True)


def tox21(bits: int = 1024, radius: int = 2) -> pd.DataFrame:
    """Tox21: 12 binary assays of 8,014 compounds, given as Morgan fingerprints; compounds without any label left out.

    Columns: f0 … and the assays, empty where they were not run.
    """
    from rdkit import Chem, RDLogger
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    RDLogger.DisableLog("rdApp.*")  # a word about each unusual molecule
    table = pd.read_csv(folder() / "chem" / "tox21.csv.gz").dropna(subset="smiles")
    molecules = [Chem.MolFromSmiles(smiles) for smiles in table["smiles"]]
    usable = np.array([molecule is not None for molecule in molecules]) & table[ASSAYS].notna().any(axis=1).to_numpy()
    generator = GetMorganGenerator(radius=radius, fpSize=bits)
    prints = np.stack([generator.GetFingerprintAsNumPy(molecules[row]) for row in np.flatnonzero(usable)])
    features = pd.DataFrame(prints.astype(float), columns=[f"f{index}" for index in range(bits)])
    return pd.concat([features, table.loc[usable, ASSAYS].reset_index(drop=True)], axis=1)
