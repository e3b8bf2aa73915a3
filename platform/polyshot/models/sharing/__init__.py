"""Sharing schemes decide which parameters tasks have in common: inputs [B, F] → what each head reads.

A scheme is built from a factory of encoders, so that every scheme works with every encoder (those that share layer by
layer: with every encoder that says its layers). A new scheme is one file here, one section in `study/model.py` and one
case below.
"""

from __future__ import annotations

from collections.abc import Sequence

from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.sharing.attention import AttentionSharing
from polyshot.models.sharing.base import SharingScheme
from polyshot.models.sharing.cgc import CGC
from polyshot.models.sharing.cross_stitch import CrossStitch
from polyshot.models.sharing.grouped import GroupedSharing
from polyshot.models.sharing.hard import HardSharing
from polyshot.models.sharing.hierarchical import HierarchicalSharing
from polyshot.models.sharing.mmoe import MMoE
from polyshot.models.sharing.ple import PLE
from polyshot.models.sharing.soft import SoftSharing
from polyshot.study.model import Sharing

__all__ = ["SharingScheme", "build_sharing"]


def build_sharing(settings: Sharing, names: Sequence[str], encoders: EncoderFactory) -> SharingScheme:
    """A study's sharing scheme with fresh weights, for the tasks of these names.

    Raises:
        StudyError: when the scheme asks for layers that the encoder does not have.
    """
    tasks = len(names)
    match settings.kind:
        case "hard":
            return HardSharing(encoders)
        case "soft":
            return SoftSharing(encoders, tasks, settings.strength)
        case "cross_stitch":
            return CrossStitch(encoders, tasks, settings.own_share)
        case "hierarchical":
            return HierarchicalSharing(encoders, [settings.depths.get(name) for name in names])
        case "grouped":
            return GroupedSharing(encoders, [[names.index(name) for name in group] for group in settings.groups])
        case "attention":
            return AttentionSharing(encoders, tasks)
        case "mmoe":
            return MMoE(encoders, tasks, settings.experts)
        case "cgc":
            return CGC(encoders, tasks, settings.shared_experts, settings.task_experts)
        case "ple":
            return PLE(encoders, tasks, settings.levels, settings.shared_experts, settings.task_experts)
