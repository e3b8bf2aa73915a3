"""Text columns as numbers: words counted or weighted by scikit-learn, or sentences embedded by a Hugging Face encoder.

Called by `Features`, which fits the former to the training rows; the latter stays as it was trained. Neither sees a
label.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyshot.errors import DataError, ResourceError
from polyshot.study.data import BagOfWords, SentenceEncoder, TfIdf

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

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
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ResourceError(f"{place}: kind 'transformers' needs transformers; install polyshot[text]") from None
    import torch

    where = located(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        encoder = AutoModel.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place}: there is no encoder '{model}' ({str(error).splitlines()[0]}); name a folder, a model of the "
            "Hugging Face hub, or 'package:folder'"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _Encoder(encoder.eval().to(device), tokenizer)


def located(model: str) -> str:
    """`package:folder` as the folder in an installed package; anything else as it is."""
    package, colon, folder = model.partition(":")
    if colon and package.isidentifier():
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            return str(Path(found.origin).parent / folder)
    return model
