"""Text columns as numbers: words counted or weighted by scikit-learn, sentences embedded by a frozen Hugging Face
encoder, or tokens for an encoder that is trained.

Called by `Features`, which fits the first to the training rows; the others need no fitting. None sees a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.data.inputs import TextPlace
from polyshot.data.pretrained import load_configuration, load_encoder, load_tokenizer, located
from polyshot.data.words import holds_lists, words_of
from polyshot.errors import DataError
from polyshot.study.data import BagOfWords, SentenceEncoder, TfIdf

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

_TEXTS_AT_ONCE = 10_000  # texts that are cut into tokens in one call
_TEXTS_KEPT = 100_000  # embeddings of one encoder that are remembered: 150 MB of them for 384 numbers each


def as_strings(column: pd.Series) -> NDArray[np.object_]:
    """The column's texts [N]; a missing one is empty."""
    return column.astype(object).where(column.notna(), "").map(str).to_numpy(dtype=object)


def vectoriser(settings: BagOfWords | TfIdf, texts: Iterable[str], place: str) -> CountVectorizer:
    """What counts or weighs the words of `texts`, fitted to them.

    Raises:
        DataError: when they hold no word.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    make = CountVectorizer if isinstance(settings, BagOfWords) else TfidfVectorizer
    words = make(max_features=settings.max_features, ngram_range=(1, settings.ngrams), dtype=np.float32)
    try:
        return words.fit(texts)
    except ValueError as error:  # scikit-learn's only objection to texts
        raise DataError(
            f"{place} holds no words in the training rows ({error}); leave it out of data.text and data.columns"
        ) from None


def embeddings(settings: SentenceEncoder, texts: NDArray[np.object_], place: str) -> NDArray[np.float32]:
    """The sentences' vectors [N, H], each scaled so that the mean square of its numbers is 1.

    Raises:
        ResourceError: where transformers is not installed.
        DataError: when there is no such encoder.
    """
    encoder = _encoder(settings.model, place)
    known = encoder.known
    fresh = [text for text in dict.fromkeys(texts) if (text, settings.max_tokens) not in known]
    if len(known) + len(fresh) > _TEXTS_KEPT:
        known.clear()
        fresh = list(dict.fromkeys(texts))
    fresh.sort(key=len)  # sentences of one batch are padded to the longest
    for start in range(0, len(fresh), settings.batch_size):
        some = fresh[start : start + settings.batch_size]
        vectors = encoder.embed(some, settings.max_tokens)
        known.update(((text, settings.max_tokens), vector) for text, vector in zip(some, vectors, strict=True))
    return np.stack([known[text, settings.max_tokens] for text in texts])


class _Encoder:
    """A frozen encoder, and the vectors of the texts that it has seen: splits and readings ask for the same ones."""

    def __init__(self, model: Any, tokenizer: Any):
        self._model = model
        self._tokenizer = tokenizer
        self.known: dict[tuple[str, int], NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str], max_tokens: int) -> NDArray[np.float32]:
        """[N, H]: the mean over each text's tokens, as sentence encoders are trained (Reimers & Gurevych 2019)."""
        import torch

        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        tokens = tokens.to(self._model.device)
        with torch.no_grad():
            hidden = self._model(**tokens).last_hidden_state.float()  # [N, L, H]
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        scaled = mean / mean.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
        return scaled.cpu().numpy()


@cache
def _encoder(model: str, place: str) -> _Encoder:
    import torch

    where = located(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _Encoder(load_encoder(where, place).to(device), load_tokenizer(where, place))


# --- tokens ----------------------------------------------------------------------------------------------------------


class TokenReading:
    """Texts as the ids of their tokens, cut once; what a trained encoder reads.

    A row has `max_tokens` numbers, id + 1 of each token and 0 after the last; then, of a column of words whose first
    `words` are to be labelled, the place of each word's first token, from 1, and 0 where there is none.
    """

    def __init__(self, model: str, max_tokens: int, words: int = 0, place: str = "model.encoder.model"):
        """`model`: as `located` gives it."""
        self.model, self.max_tokens, self.words, self._place = model, max_tokens, words, place

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.model, self._place)
        if self.words and not tokenizer.is_fast:
            raise DataError(
                f"{self._place}: the tokenizer of '{self.model}' cannot say which word a token is of; for tasks of "
                "kind tokens take an encoder with a fast one"
            )
        return tokenizer

    @property
    def width(self) -> int:
        return self.max_tokens + self.words

    def place(self, column: str) -> TextPlace:
        return TextPlace(column, self.max_tokens, self.words)

    def read(self, column: pd.Series) -> NDArray[np.float32]:
        """[N, max_tokens + words]. Ids are below 2^24, so that float32 holds them exactly."""
        split = self.words > 0 or holds_lists(column)
        texts = [words_of(value) for value in column] if split else list(as_strings(column))
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[start : start + _TEXTS_AT_ONCE]
            found = self._tokenizer(some, is_split_into_words=split, truncation=True, max_length=self.max_tokens)
            for place, ids in enumerate(found["input_ids"]):
                row = rows[start + place]
                row[: len(ids)] = np.asarray(ids) + 1
                if self.words:
                    self._mark_first(row[self.max_tokens :], found.word_ids(place))
        return rows

    @staticmethod
    def _mark_first(places: NDArray[np.float32], word_of_token: Sequence[int | None]) -> None:
        """Write the place of each word's first token into `places` [words]."""
        for token, word in reversed([*enumerate(word_of_token, start=1)]):
            if word is not None and word < len(places):
                places[word] = token

    def names(self, column: str) -> list[str]:
        tokens = [f"{column}: token {place}" for place in range(self.max_tokens)]
        return tokens + [f"{column}: word {place}" for place in range(self.words)]

    def labelling(self, words: int) -> TokenReading:
        """The same reading for tasks that label so many words."""
        return TokenReading(self.model, self.max_tokens, words, self._place)

    def save(self, folder: Path) -> None:
        """Write the tokenizer and what the encoder's architecture is; they make `folder` an encoder without weights."""
        self._tokenizer.save_pretrained(folder)
        load_configuration(self.model, self._place).save_pretrained(folder)
