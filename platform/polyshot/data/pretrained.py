"""Hugging Face encoders and their tokenizers, by name, folder or `package:folder`: the only place that loads them.

Called by the reading of text columns and by the encoders of models. It trains nothing and keeps nothing.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyshot.errors import DataError, ResourceError

if TYPE_CHECKING:
    from torch import nn


def located(model: str, folder: Path = Path()) -> str:
    """`package:folder` as the folder in an installed package, a path as from `folder`; anything else as it is."""
    package, colon, inside = model.partition(":")
    if colon and package.isidentifier():
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            return str(Path(found.origin).parent / inside)
    path = folder / Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def load_tokenizer(model: str, place: str) -> Any:
    """The tokenizer of an encoder that `located` found; `place` is the study's key, for the words of errors.

    Raises:
        ResourceError: where transformers is not installed.
        DataError: when there is no such encoder.
    """
    return _loaded("tokenizer", model, place)


def load_encoder(model: str, place: str, *, pretrained: bool = True) -> nn.Module:
    """The encoder's network, with its own weights or random ones, in evaluation mode and without a pooler.

    Raises:
        ResourceError: where transformers is not installed.
        DataError: when there is no such encoder.
    """
    network: nn.Module = _loaded("weights" if pretrained else "architecture", model, place)
    if getattr(network, "pooler", None) is not None:
        network.register_module("pooler", None)  # nothing reads it
    return network.float().eval()  # some are kept in half precision


def load_configuration(model: str, place: str) -> Any:
    """What an encoder's architecture is.

    Raises:
        ResourceError: where transformers is not installed.
        DataError: when there is no such encoder.
    """
    return _loaded("configuration", model, place)


def _loaded(part: str, model: str, place: str) -> Any:
    transformers = _transformers(place)
    try:
        match part:
            case "tokenizer":
                return transformers.AutoTokenizer.from_pretrained(model)
            case "weights":
                return transformers.AutoModel.from_pretrained(model)
            case "configuration":
                return transformers.AutoConfig.from_pretrained(model)
            case _:
                return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(model))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place}: there is no encoder '{model}' ({str(error).splitlines()[0]}); name a folder, a model of the "
            "Hugging Face hub, or 'package:folder'"
        ) from None


@cache
def _transformers(place: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ResourceError(f"{place}: needs transformers; install polyshot[text]") from None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, it is not warned of where a process forks
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
