"""A Hugging Face encoder over tokens, trained with the heads: one vector a row, and one for each word that is labelled.

Devlin et al., "BERT" (NAACL 2019) for words, which are read off their first token; Reimers & Gurevych, "Sentence-BERT"
(EMNLP 2019) for rows, which are the mean over their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout
from polyshot.data.pretrained import load_encoder, located
from polyshot.errors import DataError
from polyshot.study.model import Transformer

_ROWS_AT_ONCE = 64  # where no gradients are kept


class TransformerEncoder(nn.Module):
    """[B, F] → [B, P · H], P vectors of H numbers for each row: one of all its text, and one for each of W words.

    With several columns of text, the vectors of all of them stand beside each other in H.

    Attributes:
        places: P, 1 where no words are labelled.
        width: H.
        hidden: what each column of text has of it.
        layers: what has something to learn, from the bottom: the embeddings, then the layers.
    """

    def __init__(self, inputs: InputLayout, settings: Transformer, folder: Path = Path()):
        """
        Raises:
            DataError: when there is no such encoder, or none of the columns is text.
        """
        super().__init__()
        if not inputs.texts:
            raise DataError(
                "model.encoder: 'transformer' reads columns of text and there is none; say which in data.columns"
            )
        place = "model.encoder.model"
        self.network = load_encoder(located(settings.model, folder), place, pretrained=settings.pretrained)
        if settings.checkpoint_activations:
            self.network.activation_checkpointing_enable()  # type: ignore[operator]
        self._inputs = inputs
        self._settings = settings
        self.places = 1 + inputs.words
        self.hidden = int(self.network.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.width = self.hidden * len(inputs.texts)
        self.outputs = self.places * self.width

    def forward(self, rows: Tensor) -> Tensor:
        return self.vectors(rows).flatten(1)

    def vectors(self, rows: Tensor) -> Tensor:
        """[B, F] → [B, P, H]."""
        if torch.is_grad_enabled():
            return self._vectors(rows)
        # Texts of like lengths together, since each batch is padded to its longest.
        order = rows[:, self._inputs.numbers :].count_nonzero(1).argsort()
        vectors = torch.cat([self._vectors(rows[some]) for some in order.split(_ROWS_AT_ONCE)])
        return vectors[order.argsort()]

    def _vectors(self, rows: Tensor) -> Tensor:
        parts = [self._of_column(tokens, words) for tokens, words in self._inputs.texts_of(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _of_column(self, tokens: Tensor, words: Tensor) -> Tensor:
        """Tokens [B, T] and places of words [B, W] → [B, P, H'] of one column."""
        there = tokens > 0
        hidden = self.network(input_ids=(tokens - 1).clamp(min=0), attention_mask=there.long()).last_hidden_state
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
        stacks = [module for module in self.network.modules() if isinstance(module, nn.ModuleList)]
        depth = getattr(self.network.config, "num_hidden_layers", None)
        (layers, *_) = [stack for stack in stacks if len(stack) == depth] or [nn.ModuleList([self.network])]
        inside = {id(parameter) for parameter in layers.parameters()}
        below = [child for child in self.network.children() if not inside & {id(p) for p in child.parameters()}]
        embeddings = [child for child in below if any(isinstance(part, nn.Embedding) for part in child.modules())]
        return [*embeddings, *layers]

    def learning_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Every parameter, and by what its learning rate is multiplied."""
        layers, decay = self.layers, self._settings.layer_decay
        powers = {
            id(parameter): len(layers) - 1 - place
            for place, layer in enumerate(layers)
            for parameter in layer.parameters()
        }
        for parameter in self.parameters():
            yield parameter, self._settings.learning_rate_factor * decay ** powers.get(id(parameter), 0)
