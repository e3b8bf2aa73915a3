"""LoRA: updates of low rank for the linear layers of the source's encoder, which itself stays as it is.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022): W + α/r · B A with B = 0 at first. The
layers are those of Hugging Face's peft; afterwards the updates are added to the weights, and nothing is left of them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from polyshot.errors import ResourceError, RunError
from polyshot.study.transfer import LoRA
from polyshot.transfer.model import TransferModel, Wrapped
from polyshot.transfer.problem import Problem
from polyshot.transfer.start import Start, on_source, plainly_weighed


class LowRank(Wrapped):
    """[B, F] → [B, H]."""

    def __init__(self, encoder: nn.Module, settings: LoRA, seed: int):
        """
        Raises:
            ResourceError: where peft is not installed.
            RunError: for an encoder without linear layers.
        """
        super().__init__()
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ResourceError("transfer.methods: 'lora' needs peft; install polyshot[peft]") from None
        self.outputs = int(encoder.outputs)  # type: ignore[arg-type]
        names = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        if not names:
            raise RunError("transfer.methods: 'lora' updates linear layers and the source's encoder has none")
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.updated = get_peft_model(encoder, config)

    def forward(self, features: Tensor) -> Tensor:
        return self.updated(features)

    def unwrap(self, weight: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        return copy.deepcopy(self.updated).merge_and_unload(), weight, bias

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        self.updated.eval()  # the encoder's dropout and normalisation; the updates have none
        return self


def prepare(settings: LoRA, problem: Problem) -> Start:
    start = on_source(problem, settings)
    assert isinstance(start.model, TransferModel)
    start.model.sharing.encoder = LowRank(start.model.encoder, settings, problem.study.seed)
    return Start(plainly_weighed(start.study), start.prepared, start.saved, start.model)
