"""Polyshot: several related prediction tasks, trained, searched and compared on Ray from one study file.

Importing this package is quick: what it offers is loaded when it is first named.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from polyshot.errors import PolyshotError

if TYPE_CHECKING:
    from polyshot.estimators import MultiTaskClassifier, MultiTaskRegressor
    from polyshot.saved_model import SavedModel
    from polyshot.study import Study
    from polyshot.verbs.adapt import adapt
    from polyshot.verbs.affinity import affinity
    from polyshot.verbs.compare import compare
    from polyshot.verbs.features import features
    from polyshot.verbs.meta import meta_learn
    from polyshot.verbs.meta_search import meta_search
    from polyshot.verbs.predict import predict
    from polyshot.verbs.search import search
    from polyshot.verbs.serve import serve
    from polyshot.verbs.submit import submit
    from polyshot.verbs.train import train
    from polyshot.verbs.transfer import transfer
    from polyshot.verbs.transfer_search import transfer_search
    from polyshot.verbs.transfer_sources import rank_sources

__all__ = [
    "MultiTaskClassifier",
    "MultiTaskRegressor",
    "PolyshotError",
    "SavedModel",
    "Study",
    "adapt",
    "affinity",
    "compare",
    "features",
    "meta_learn",
    "meta_search",
    "predict",
    "rank_sources",
    "search",
    "serve",
    "submit",
    "train",
    "transfer",
    "transfer_search",
]

# OpenMP's threads wait for each other by spinning. Where another process has a core, torch then takes twenty times as
# long (benchmarks/threads.py). The libraries read this when they are loaded, so it is said before any of them is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LAZY = {
    "MultiTaskClassifier": "polyshot.estimators",
    "MultiTaskRegressor": "polyshot.estimators",
    "SavedModel": "polyshot.saved_model",
    "Study": "polyshot.study",
    "adapt": "polyshot.verbs.adapt",
    "affinity": "polyshot.verbs.affinity",
    "compare": "polyshot.verbs.compare",
    "features": "polyshot.verbs.features",
    "meta_learn": "polyshot.verbs.meta",
    "meta_search": "polyshot.verbs.meta_search",
    "predict": "polyshot.verbs.predict",
    "rank_sources": "polyshot.verbs.transfer_sources",
    "search": "polyshot.verbs.search",
    "serve": "polyshot.verbs.serve",
    "submit": "polyshot.verbs.submit",
    "train": "polyshot.verbs.train",
    "transfer": "polyshot.verbs.transfer",
    "transfer_search": "polyshot.verbs.transfer_search",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'polyshot' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
