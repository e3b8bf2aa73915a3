"""What an encoder computes in its hidden layers, as an encoder: of some or all layers, beside each other.

Selective transfer chooses from it (Evci et al., "Head2Toe: Utilizing Intermediate Representations for Better Transfer
Learning", ICML 2022); studies of what is saved name it, so that it is built again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout, layout_of
from polyshot.errors import RunError
from polyshot.models.encoders import make_encoder
from polyshot.models.encoders.media import MediaEncoder
from polyshot.models.encoders.transformer import TransformerEncoder
from polyshot.study.model import Model
from polyshot.transfer.model import layers_of


class HiddenLayers(nn.Module):
    """[B, F] → [B, Σ H]: the outputs of an encoder's layers, of a text's tokens or an image's pixels the mean.

    Attributes:
        widths: H of each of the layers.
    """

    def __init__(self, inputs: int | InputLayout, encoder: dict[str, Any], layers: Sequence[int]):
        """
        Args:
            encoder: a study's section.
            layers: ascending, from 1 (see `depth_of`).

        Raises:
            RunError: for a layer that is not used when the encoder predicts.
        """
        super().__init__()
        layout = layout_of(inputs)
        self.encoder = make_encoder(Model.model_validate({"encoder": encoder}).encoder, layout)
        self._numbers = list(layers)
        if isinstance(self.encoder, TransformerEncoder):
            self.encoder.read_at(self._numbers)
        with torch.no_grad():
            self.widths = [part.shape[1] for part in self.eval()._parts(torch.zeros(1, layout.width))]
        self.outputs = sum(self.widths)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a whole encoder, of which this one may lack the layers above the last that is read."""
        self.encoder.load_state_dict({name: state[name] for name in self.encoder.state_dict()})

    def forward(self, rows: Tensor) -> Tensor:
        at_once = max(len(rows), 1)
        if isinstance(self.encoder, MediaEncoder) and not torch.is_grad_enabled():
            at_once = self.encoder.rows_at_once  # so that the encoder divides them no more
        return torch.cat([torch.cat(self._parts(some), 1) for some in rows.split(at_once)])

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Of each layer [B, H]."""
        if isinstance(self.encoder, TransformerEncoder):  # which knows where its padding is
            return list(self.encoder(rows).chunk(len(self._numbers), 1))
        modules = layers_of(self.encoder)
        seen: dict[nn.Module, list[Tensor]] = {modules[number - 1]: [] for number in self._numbers}
        hooks = [
            module.register_forward_hook(lambda layer, _inputs, output: seen[layer].append(_pooled(output)))
            for module in seen
        ]
        try:
            self.encoder(rows)
        finally:
            for hook in hooks:
                hook.remove()
        for number, outputs in zip(self._numbers, seen.values(), strict=True):
            if not outputs:
                raise RunError(
                    f"layer {number} of the source's encoder is not used when it predicts; name other layers"
                )
        return [torch.cat(outputs, 1) for outputs in seen.values()]  # a layer may read several images of a row


def depth_of(encoder: nn.Module) -> int:
    """How many layers an encoder has to choose from; one that does not say them is one layer."""
    return encoder.depth if isinstance(encoder, TransformerEncoder) else len(layers_of(encoder))


def _pooled(output: Tensor) -> Tensor:
    """[B, C, …] → [B, C]; of tokens, [B, T, H] → [B, H]."""
    if output.dim() == 3:
        return output.mean(1)
    return output.flatten(2).mean(2) if output.dim() > 2 else output
