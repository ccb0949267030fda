"""Several sequences back to back in one row, with boundaries between them and no padding.

No attention looks across a boundary, and positions begin anew at each.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Plan = TypeVar("Plan")


class Packing:
    """Boundaries of the N sequences of one packed row of L tokens."""

    continues = False
    """Whether the first and the last sequence may have tokens beyond the row."""

    def __init__(self, boundaries: Sequence[int] | Tensor, length: int) -> None:
        """Take `boundaries` (N + 1,): 0, the end of each sequence, of which the last is `length`.

        Raises:
            ValueError: they do not begin at 0, do not end at `length`, or a sequence has no token.
        """
        ends = np.asarray(boundaries.cpu() if isinstance(boundaries, Tensor) else boundaries, dtype=np.int64)
        if ends.ndim != 1 or ends.size < 2:
            raise ValueError(f"boundaries of shape {ends.shape} hold no sequence; give 0 and the end of each sequence")
        if ends[0] != 0 or ends[-1] != length:
            raise ValueError(
                f"boundaries run from {ends[0]} to {ends[-1]}; they must run from 0 to the {length} tokens"
            )
        if (np.diff(ends) < 1).any():
            index = int(np.argmax(np.diff(ends) < 1))
            raise ValueError(f"boundaries must rise: {ends[index]} is followed by {ends[index + 1]}")
        self.boundaries = ends
        self._plans: dict[object, Any] = {}

    @classmethod
    def of_lengths(cls, lengths: Iterable[int]) -> "Packing":
        """Pack sequences, given by their lengths in tokens."""
        ends = np.cumsum([0, *lengths])
        return cls(ends.tolist(), int(ends[-1]))

    @property
    def length(self) -> int:
        """L, tokens of the row."""
        return int(self.boundaries[-1])

    def plan(self, key: object, build: Callable[[], Plan]) -> Plan:
        """Return an operation's plan for this row, built once for all layers and passes and kept by `key`."""
        if key not in self._plans:
            self._plans[key] = build()
        return self._plans[key]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each sequence."""
        return np.diff(self.boundaries)

    @cached_property
    def sequences(self) -> NDArray[np.int64]:
        """(L,) number of the sequence that each token belongs to."""
        return np.repeat(np.arange(self.lengths.size), self.lengths)

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """(L,) position of each token in its sequence, from 0."""
        return np.arange(self.length) - np.repeat(self.boundaries[:-1], self.lengths)

    def has_neighbour(self, offset: int, device: torch.device) -> Tensor:
        """Tell whether the token `offset` tokens later (earlier if negative) belongs to the same sequence: (L,)."""

        def build() -> Tensor:
            neighbours = np.arange(self.length) + offset
            inside = (neighbours >= 0) & (neighbours < self.length)
            same = self.sequences[np.clip(neighbours, 0, self.length - 1)] == self.sequences
            return torch.from_numpy(inside & same).to(device)

        return self.plan(("neighbour", offset, device), build)


class PackingPart(Packing):
    """A stretch of a packed row; positions and neighbours are those in the whole row."""

    continues = True

    def __init__(self, whole: Packing, span: slice) -> None:
        """Take the tokens `span` of the row `whole`."""
        inner = whole.boundaries[(whole.boundaries > span.start) & (whole.boundaries < span.stop)] - span.start
        length = span.stop - span.start
        super().__init__([0, *inner.tolist(), length], length)
        self._whole, self._span = whole, span

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """(S,) positions in the whole sequences."""
        return self._whole.positions[self._span]

    def has_neighbour(self, offset: int, device: torch.device) -> Tensor:
        """Tell the same as `Packing` does, (S,); the neighbour may lie beyond the stretch."""
        return self._whole.has_neighbour(offset, device)[self._span]
