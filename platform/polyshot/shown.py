"""How results show themselves at a prompt and in a notebook: what was found in words, then the tables.

The base of what the verbs return. It formats and computes nothing.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 20  # of a table; what is longer is cut in its middle


class Shown(ABC):
    """A result that is read in a notebook as it is; a dataclass of this kind has `repr=False`."""

    @abstractmethod
    def _words(self) -> Iterator[str]:
        """What was found, a sentence each."""

    @abstractmethod
    def _tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Tables with their titles."""

    def __repr__(self) -> str:
        lines = [*self._words()]
        for title, table in self._tables():
            rows = table.to_string(index=False, max_rows=_ROWS, na_rep="–", float_format="{:.4g}".format)
            lines += ["", title, rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(sentence)}</p>" for sentence in self._words()]
        for title, table in self._tables():
            rows = table.to_html(index=False, max_rows=_ROWS, na_rep="–", float_format="{:.4g}".format, border=0)
            parts += [f"<p><b>{html.escape(title)}</b></p>", rows]
        return "\n".join(parts)
