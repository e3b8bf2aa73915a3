"""Checkpoints on disk: written atomically, verified when read, with the one before as a reserve.

A file is the SHA-256 of its payload, then the payload of `torch.save`; it is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from polyshot import working_copy
from polyshot.errors import RunError

_DIGEST_BYTES = 32


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that a kill at any moment leaves a whole checkpoint, this one or the one before.

    Raises:
        RunError: when the disk does not take it; what was there before stays.
    """
    payload = io.BytesIO()
    torch.save(state, payload)
    content = payload.getvalue()
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(_reserve(path))
        partial.replace(path)
        working_copy.push(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(
            f"{path}: the checkpoint cannot be written ({error.strerror}), the one before is kept; "
            "make room, or choose another folder as storage"
        ) from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest whole checkpoint at `path`, or None where none was written.

    Raises:
        RunError: when there are checkpoints and all of them are damaged.
    """
    candidates = [path] if working_copy.has(path) else []
    candidates += [reserve] if (reserve := _reserve(path)).exists() else []
    for candidate in candidates:
        state = _read(candidate, device)
        if state is not None:
            return state
    if candidates:
        raise RunError(f"{path}: the checkpoint is damaged; remove it to start anew")
    return None


def _reserve(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _read(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be read ({error.strerror}); give access to it") from error
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
