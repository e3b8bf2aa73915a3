"""Seeds as functions of what they are for, so that no random state has to be saved to resume exactly."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on all of `parts`, such as (study seed, "order", epoch)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
