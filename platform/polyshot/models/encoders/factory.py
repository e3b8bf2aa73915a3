"""Fresh encoders of one study, one or several side by side, and their layers where a scheme works per layer.

A sharing scheme is given an `EncoderFactory` and nothing else of the study's encoder, so that it works with any.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from polyshot.data.inputs import InputLayout, layout_of
from polyshot.errors import Problem, StudyError
from polyshot.models.stacking import SideBySide, Stacked, StackedSequential, has_tied_parameters, stack


class EncoderFactory:
    """Makes encoders [B, inputs] → [B, H] that are alike but for their random weights."""

    def __init__(self, make: Callable[[], nn.Module], inputs: int | InputLayout, kind: str = "encoder"):
        """`kind` is what the study calls the encoder, for the words of errors."""
        self._make = make
        self._layout = layout_of(inputs)
        self._kind = kind

    @property
    def inputs(self) -> int:
        """F, the width of rows of numbers, which gates and masks read.

        Raises:
            StudyError: for rows that are not of numbers.
        """
        if not self._layout.is_numbers:
            message = (
                f"gates and masks read numbers, and '{self._kind}' reads text or images; choose hard, soft or grouped"
            )
            raise StudyError([Problem("model.sharing.kind", message)])
        return self._layout.width

    @property
    def reads_media(self) -> bool:
        """Whether rows are of text or images, beside numbers or alone."""
        return not self._layout.is_numbers

    @property
    def outputs(self) -> int:
        """H, the width of a representation."""
        return self._known[0]

    def one(self) -> nn.Module:
        return self._make()

    def stacked(self, copies: int) -> Stacked:
        """Encoders side by side, each with random weights of its own: [B, inputs] → [N, B, H]."""
        return self._stacked([self._make() for _ in range(copies)])

    def stacked_alike(self, copies: int) -> Stacked:
        """Encoders side by side that start from the same random weights: [B, inputs] → [N, B, H]."""
        encoder = self._make()
        return self._stacked([copy.deepcopy(encoder) for _ in range(copies)])

    def _stacked(self, encoders: Sequence[nn.Module]) -> Stacked:
        if self._known[1] is None:
            return stack(encoders)
        return StackedSequential(_stack_blocks(encoders), len(encoders), "blocks")

    def stacked_layers(self, copies: int, scheme: str) -> list[Stacked]:
        """The layers of encoders side by side, each [B, in] or [N, B, in] → [N, B, out].

        Raises:
            StudyError: as `widths`.
        """
        self.widths(scheme)
        return _stack_blocks([self._make() for _ in range(copies)])

    def widths(self, scheme: str) -> list[int]:
        """The numbers of outputs of the encoder's layers.

        Raises:
            StudyError: when the encoder does not say its layers, which the sharing scheme `scheme` needs.
        """
        widths = self._known[1] if self._layout.is_numbers else None
        if widths is None:
            if not self._layout.is_numbers:
                message = f"'{scheme}' works on layers of numbers, and '{self._kind}' reads text or images"
                raise StudyError([Problem("model.sharing.kind", f"{message}; choose hard, soft or grouped")])
            message = (
                f"'{scheme}' works on the layers of an encoder and '{self._kind}' does not say them; give it an "
                "attribute 'blocks', a torch.nn.Sequential of modules from [B, in] to [B, out] that one after another "
                "are the encoder, or choose hard, soft, grouped, mmoe or cgc"
            )
            raise StudyError([Problem("model.sharing.kind", message)])
        return widths

    def layers(self, scheme: str) -> list[nn.Module]:
        """The layers of a fresh encoder, which applied one after another are the encoder.

        Raises:
            StudyError: as `widths`.
        """
        self.widths(scheme)
        return _blocks(self._make())

    @cached_property
    def _known(self) -> tuple[int, list[int] | None]:
        """The encoder's outputs and its layers' widths, None where it does not say its layers.

        Two rows are passed through, so that what an encoder says of its layers is checked and not believed.
        """
        with torch.random.fork_rng(devices=[]):  # the weights of the encoders to come do not depend on this one
            encoder = self._make()
            if not self._layout.is_numbers:
                return encoder.outputs, None  # type: ignore[return-value]
            rows = torch.linspace(-1, 1, 2 * self.inputs).view(2, self.inputs)
            in_training, after_it = (_layer_widths(encoder.train(mode), rows) for mode in (True, False))
        return encoder.outputs, in_training and after_it  # type: ignore[return-value]


@torch.no_grad()
def _layer_widths(encoder: nn.Module, rows: Tensor) -> list[int] | None:
    """The widths of the blocks' outputs, or None where the blocks one after another are not the encoder."""
    values, widths = rows, []
    torch.manual_seed(0)  # dropout, the same in both
    for block in _blocks(encoder):
        try:
            values = block(values)
        except (RuntimeError, TypeError, ValueError, IndexError):  # the encoder puts them together in another way
            return None
        if not isinstance(values, Tensor) or values.shape[:-1] != (2,):
            return None
        widths.append(values.shape[-1])
    torch.manual_seed(0)
    return widths if widths and torch.equal(values, encoder(rows)) else None


def _stack_blocks(encoders: Sequence[nn.Module]) -> list[Stacked]:
    put_together = SideBySide if has_tied_parameters(encoders[0]) else stack
    return [put_together(blocks) for blocks in zip(*map(_blocks, encoders), strict=True)]


def _blocks(encoder: nn.Module) -> list[nn.Module]:
    blocks = getattr(encoder, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
