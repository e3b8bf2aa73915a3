"""Draws what the newest learner of the study makes of one wave's ten points after 0, 1 and 10 steps.

polyshot meta examples/meta-sinusoids/study.yaml && python examples/meta-sinusoids/picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyshot.meta.saved import SavedLearner
from polyshot.report.plots import COLOURS
from polyshot.verbs.adapt import find_learner

STEPS = (0, 1, 10)
AMPLITUDE, PHASE = 3.0, 1.0


def main() -> None:
    learner = SavedLearner.load(find_learner("sinusoids", Path("polyshot-runs")))
    random = np.random.default_rng(0)
    points = random.uniform(-5, 5, (10, 1))
    line = np.linspace(-5, 5, 200)[:, None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(line, AMPLITUDE * np.sin(line - PHASE), color="grey", label="the wave")
    axis.scatter(points, AMPLITUDE * np.sin(points - PHASE), color="black", zorder=3, label="its ten points")
    for steps, colour in zip(STEPS, COLOURS, strict=False):
        adapted = learner.adapt(points, AMPLITUDE * np.sin(points[:, 0] - PHASE), steps=steps)
        axis.plot(line, adapted.predict(line), color=colour, linestyle="--", label=f"after {steps} steps")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png("sinusoids.png")
    print("drawn: sinusoids.png")


if __name__ == "__main__":
    main()
