"""Methods of transfer: how training begins and what is added to it, given a source and a target's few labels.

A method is a function `prepare(settings, problem) -> Start`, one file each. A new one is one file here, one section in
`study/transfer.py` and one line below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyshot.study import transfer as sections
from polyshot.study.transfer import TransferMethod
from polyshot.transfer.methods import (
    adapters,
    dann,
    deep_coral,
    distillation,
    feature_mapping,
    fine_tuning,
    gradient_guided,
    knn,
    l2_sp,
    linear_probe,
    lora,
    meta_learned,
    mixed,
    mmd,
    selective,
)
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start

METHODS: dict[type[TransferMethod], Callable[[Any, Problem], Start]] = {
    sections.FineTuning: fine_tuning.prepare,
    sections.LinearProbe: linear_probe.prepare,
    sections.NearestNeighbours: knn.prepare,
    sections.L2SP: l2_sp.prepare,
    sections.Adapters: adapters.prepare,
    sections.LoRA: lora.prepare,
    sections.Distillation: distillation.prepare,
    sections.FeatureMapping: feature_mapping.prepare,
    sections.SelectiveTransfer: selective.prepare,
    sections.MixedTraining: mixed.prepare,
    sections.DANN: dann.prepare,
    sections.DeepCORAL: deep_coral.prepare,
    sections.MMD: mmd.prepare,
    sections.GradientGuided: gradient_guided.prepare,
    sections.MetaLearned: meta_learned.prepare,
}


def prepare(settings: TransferMethod, problem: Problem) -> Start:
    """How the method begins on `problem`.

    Raises:
        PolyshotError: when the source or the target lacks what the method needs.
    """
    return METHODS[type(settings)](settings, problem)
