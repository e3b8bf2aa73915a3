"""Methods of transfer: how training begins and what is added to it, given a source and a target's few labels.

A method is a function `prepare(settings, problem) -> Start`, one file each. A new one is one file here, one section in
`study.py` and one line below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyshot import study
from polyshot.study import TransferMethod
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
    study.FineTuning: fine_tuning.prepare,
    study.LinearProbe: linear_probe.prepare,
    study.NearestNeighbours: knn.prepare,
    study.L2SP: l2_sp.prepare,
    study.Adapters: adapters.prepare,
    study.LoRA: lora.prepare,
    study.Distillation: distillation.prepare,
    study.FeatureMapping: feature_mapping.prepare,
    study.SelectiveTransfer: selective.prepare,
    study.MixedTraining: mixed.prepare,
    study.DANN: dann.prepare,
    study.DeepCORAL: deep_coral.prepare,
    study.MMD: mmd.prepare,
    study.GradientGuided: gradient_guided.prepare,
    study.MetaLearned: meta_learned.prepare,
}


def prepare(settings: TransferMethod, problem: Problem) -> Start:
    """How the method begins on `problem`.

    Raises:
        PolyshotError: when the source or the target lacks what the method needs.
    """
    return METHODS[type(settings)](settings, problem)
