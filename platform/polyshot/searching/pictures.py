"""What a search says of its parameters, in Optuna's own plots: slices, and a contour of the two that matter most.

Called when a search has ended. Figures that need no Optuna are `report.plots`'.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure

from polyshot.searching.importances import of_one_objective

_SLICES = 6  # parameters, the most important ones


def optuna_figures(
    study: optuna.Study, names: Sequence[str], found: Mapping[str, pd.DataFrame], folder: Path
) -> Iterator[Path]:
    """For each objective (`names`) of which `importances` were found, a plot of slices and a contour; the files."""
    for place, name in enumerate(names):
        if name not in found:
            continue
        suffix = f"_{name.replace('/', '_')}" if len(names) > 1 else ""
        one, parameters = of_one_objective(study, place), list(found[name].index)
        with _pyplot() as visualization:
            axes = visualization.plot_slice(one, params=parameters[:_SLICES], target_name=name)
            yield _save(np.ravel(axes)[0].figure, folder / f"slices{suffix}.png", 3.2 * min(len(parameters), _SLICES))
            if len(parameters) > 1:
                axes = visualization.plot_contour(one, params=parameters[:2], target_name=name)
                yield _save(np.ravel(axes)[0].figure, folder / f"contour{suffix}.png", 6)


@contextmanager
def _pyplot() -> Iterator[Any]:
    """Optuna's plots of matplotlib; what they change of its settings, and the figures they leave open, is undone."""
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as visualization

    with warnings.catch_warnings(), plt.rc_context(), plt.ioff():
        warnings.simplefilter("ignore")
        before = set(plt.get_fignums())
        try:
            yield visualization
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def _save(figure: Figure, path: Path, width: float) -> Path:
    figure.set_size_inches(width, 4)
    figure.savefig(path, bbox_inches="tight")
    return path
