"""What stands where in a row of inputs: numbers first, then tokens of text and bytes of images.

A row is one vector of float32, whatever its table held, so that batches, splits and workers need to know of nothing
else. `Features` says the layout, encoders take rows apart by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tables are looked at without torch, too
    from torch import Tensor


@dataclass(frozen=True)
class TextPlace:
    """A column of text: `tokens` numbers, then `words` more where its words are labelled (see `TokenReading`)."""

    column: str
    tokens: int
    words: int = 0

    @property
    def width(self) -> int:
        return self.tokens + self.words


@dataclass(frozen=True)
class ImagePlace:
    """A column of images [channels, size, size], four bytes to a number (see `ImageReading`).

    Attributes:
        means, deviations: of each channel from 0 to 1, by which an encoder normalises.
        flip, shift: what is done to them in training.
    """

    column: str
    channels: int
    size: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    flip: bool = False
    shift: int = 0

    @property
    def width(self) -> int:
        return self.channels * self.size**2 // 4


@dataclass(frozen=True)
class InputLayout:
    """The columns of rows [N, F]."""

    numbers: int
    texts: tuple[TextPlace, ...] = ()
    images: tuple[ImagePlace, ...] = ()

    @property
    def width(self) -> int:
        """F."""
        widths = [*(place.width for place in self.texts), *(place.width for place in self.images)]
        return self.numbers + sum(widths)

    @property
    def words(self) -> int:
        """W, the words of a row that are labelled; 0 where none are."""
        return max((place.words for place in self.texts), default=0)

    @property
    def is_numbers(self) -> bool:
        return not self.texts and not self.images

    def numbers_of(self, rows: Tensor) -> Tensor:
        """[B, F] → [B, numbers]."""
        return rows[:, : self.numbers]

    def texts_of(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each column of text, the tokens [B, T] and the places of words [B, W], both whole numbers.

        T is that of the longest text among these rows. Tokens are ids + 1, or 0 behind the last one.
        """
        start = self.numbers
        for place in self.texts:
            tokens = rows[:, start : start + place.tokens].long()
            longest = int((tokens > 0).sum(1).max()) if len(rows) else 0
            words = rows[:, start + place.tokens : start + place.width].long()
            yield tokens[:, : max(1, longest)], words
            start += place.width

    def lengths_of(self, rows: Tensor) -> Tensor:
        """[B, F] → [B], how many numbers of a row's texts are not padding."""
        return rows[:, self.numbers : self.numbers + sum(place.width for place in self.texts)].count_nonzero(1)

    def images_of(self, rows: Tensor) -> Iterator[tuple[Tensor, ImagePlace]]:
        """Of each column of images, its bytes [B, C, S, S] and what is known of it."""
        from torch import uint8

        start = self.width - sum(place.width for place in self.images)
        for place in self.images:
            packed = rows[:, start : start + place.width].contiguous()
            yield packed.view(uint8).reshape(-1, place.channels, place.size, place.size), place
            start += place.width


def layout_of(inputs: int | InputLayout) -> InputLayout:
    """`inputs` numbers as a layout."""
    return InputLayout(inputs) if isinstance(inputs, int) else inputs
