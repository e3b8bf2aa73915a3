"""What the sections of a study share: strict, frozen, and with no key that they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
OBJECT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # package.module:name
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the study: unknown keys are errors, values are never coerced, instances never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def kind_or(default: str) -> Discriminator:
    """Chooses a section's variant by its `kind`, which may be left out; `package.module:Class` is `custom`."""

    def tag(value: object) -> str:
        kind = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", default)
        return "custom" if isinstance(kind, str) and ":" in kind else str(kind)

    return Discriminator(tag)
