"""Fine-tuning: the source's encoder is where training begins.

All layers, or the top ones only; all at once, or one more every few epochs from the top (gradual unfreezing); with
smaller rates further down (discriminative fine-tuning). The latter two are of Howard & Ruder, "Universal Language Model
Fine-tuning for Text Classification" (ACL 2018).
"""

from __future__ import annotations

from polyshot.study.transfer import FineTuning
from polyshot.transfer.model import Training
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, on_source


def prepare(settings: FineTuning, problem: Problem) -> Start:
    return on_source(problem, settings, training=training(settings))


def training(settings: FineTuning) -> Training:
    most, every = settings.layers, settings.unfreeze_every
    if every is not None:
        # The heads are alone at first; then the top layer is trained as well, then the one below it.
        def layers(epoch: int) -> int | None:
            return min((epoch - 1) // every, most or epoch)

        return Training(layers, settings.layer_decay)
    return Training(lambda _: most, settings.layer_decay)
