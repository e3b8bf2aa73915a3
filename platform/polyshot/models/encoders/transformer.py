"""A Hugging Face encoder over tokens, trained with the heads: one vector a row, and one for each word that is labelled.

Devlin et al., "BERT" (NAACL 2019) for words, which are read off their first token; Reimers & Gurevych, "Sentence-BERT"
(EMNLP 2019) for rows, which are the mean over their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.data.pretrained import load_encoder, located
from polyshot.errors import DataError, Problem, StudyError
from polyshot.models.encoders.media import MediaEncoder
from polyshot.study.model import Transformer


class TransformerEncoder(MediaEncoder):
    """One vector of all of a row's text, and one for each of W words.

    With several columns of text, the vectors of all of them stand beside each other.

    Attributes:
        hidden: what each column of text has of the width.
    """

    def __init__(self, inputs: InputLayout, settings: Transformer, folder: Path = Path()):
        """
        Raises:
            DataError: when there is no such encoder, or none of the columns is text.
            StudyError: when the encoder does not read as many tokens.
        """
        if not inputs.texts:
            raise DataError(
                "model.encoder: 'transformer' reads columns of text and there is none; say which in data.columns"
            )
        network = load_encoder(located(settings.model, folder), "model.encoder.model", pretrained=settings.pretrained)
        most = getattr(network.config, "max_position_embeddings", None)
        if most is not None and settings.max_tokens > most:
            message = f"the encoder reads {most} tokens at most, got {settings.max_tokens}; lower it"
            raise StudyError([Problem("model.encoder.max_tokens", message)])
        hidden = int(network.config.hidden_size)  # type: ignore[union-attr, arg-type]
        super().__init__(inputs, hidden * len(inputs.texts), settings.learning_rate_factor, settings.layer_decay)
        if settings.checkpoint_activations:
            network.activation_checkpointing_enable()  # type: ignore[operator]
        self.network = network
        self.hidden = hidden
        self._depths: list[int] = []

    def computed(self, rows: Tensor) -> Tensor:
        parts = [self._of_column(tokens, words) for tokens, words in self.inputs.texts_of(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    @property
    def depth(self) -> int:
        """How many layers there are above the embeddings."""
        return len(self.layers) - 1

    def read_at(self, depths: Sequence[int]) -> None:
        """Give the vectors of these layers, from 1 and ascending, beside each other: [B, D · P · H].

        Layers above the last of them are removed.
        """
        self._depths = list(depths)
        del self._stack[depths[-1] :]
        self.network.config.num_hidden_layers = depths[-1]  # type: ignore[union-attr]

    def _of_column(self, tokens: Tensor, words: Tensor) -> Tensor:
        """Tokens [B, T] and places of words [B, W] → [B, P, H'] of one column; of several layers [B, D · P, H']."""
        there = tokens > 0
        found = self.network(
            input_ids=(tokens - 1).clamp(min=0), attention_mask=there.long(), output_hidden_states=bool(self._depths)
        )
        if not self._depths:
            return self._read(found.last_hidden_state, there, words)
        return torch.cat([self._read(found.hidden_states[depth], there, words) for depth in self._depths], 1)

    def _read(self, hidden: Tensor, there: Tensor, words: Tensor) -> Tensor:
        """[B, T, H'] → [B, P, H']: the mean, and the vectors of words."""
        weight = there.unsqueeze(2).to(hidden.dtype)
        mean = (hidden * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        if self.places == 1:
            return mean
        if not words.shape[1]:  # another column's words are labelled: beside each of them, all of this text
            return mean.expand(-1, self.places, -1)
        place = (words - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, hidden.shape[2])
        # A word that is not there, or was cut off, is a vector of zeros.
        return torch.cat([mean, hidden.gather(1, place) * (words > 0).unsqueeze(2)], 1)

    @property
    def layers(self) -> list[nn.Module]:
        """The embeddings, then the layers."""
        inside = {id(parameter) for parameter in self._stack.parameters()}
        below = [child for child in self.network.children() if not inside & {id(p) for p in child.parameters()}]
        embeddings = [child for child in below if any(isinstance(part, nn.Embedding) for part in child.modules())]
        return [*embeddings, *self._stack]

    @property
    def _stack(self) -> nn.ModuleList:
        """The network's own list of its layers."""
        depth = getattr(self.network.config, "num_hidden_layers", None)
        stacks = [module for module in self.network.modules() if isinstance(module, nn.ModuleList)]
        return next((stack for stack in stacks if len(stack) == depth), nn.ModuleList([self.network]))
