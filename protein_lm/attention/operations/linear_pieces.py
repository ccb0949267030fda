"""The pieces in which linear attention walks a row: they fit the cache, and consist of chunks.

A row that is one sequence is cut evenly. In a packed row, every chunk holds tokens of one sequence only. The last chunk of a
sequence may have empty slots, so tokens are gathered into chunks and back, a piece at a time.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.packing import Packing


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `span` of the row, walked as N = `num_chunks` chunks of C = `chunk` slots each."""

    span: slice
    num_chunks: int
    chunk: int
    source: Tensor | None = None
    """(N·C,) index within the span of each slot's token, any where the slot is empty. None: slots are tokens."""
    filled: Tensor | None = None
    """(N·C, 1) whether a slot holds a token."""
    slots: Tensor | None = None
    """(tokens of the span,) slot of each token."""
    flow: Tensor | None = None
    """Causal: (N + 1, N + 1) boolean. Columns are the incoming state and the contributions of the N chunks. Row c has those
    that make the state before chunk c; the last row, those of the outgoing state. None: all that came before."""
    owners: Tensor | None = None
    """Bidirectional: (N,) number of each chunk's sequence within the run. None: there is one sequence."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces that share the states of `num_sequences` sequences: one piece, or all pieces of one long sequence."""

    pieces: list[Piece]
    num_sequences: int


def causal_pieces(length: int, chunk: int, segment: int, packing: Packing | None, device: torch.device) -> list[Piece]:
    """Cut a row into pieces of about `segment` tokens, in chunks of about `chunk`, in order."""
    if packing is None:
        chunk = even_part(length, chunk)
        return Chunks(np.array([0, length]), chunk).pieces(segment, device)
    key = "causal", chunk, segment, device
    return packing.plan(key, lambda: Chunks(packing.boundaries, chunk).pieces(segment, device, with_flow=True))


def bidirectional_runs(
    length: int, chunk: int, segment: int, packing: Packing | None, device: torch.device
) -> list[Run]:
    """Cut a row into runs of pieces of about `segment` tokens; only a packed row has chunks, of `chunk` slots."""
    if packing is None:
        size = even_part(length, segment)
        spans = [slice(start, min(start + size, length)) for start in range(0, length, size)]
        return [Run([Piece(span, 1, span.stop - span.start) for span in spans], 1)]
    key = "bidirectional", chunk, segment, device
    return packing.plan(
        key, lambda: Chunks(packing.boundaries, chunk).runs(segment, device, edges_apart=packing.continues)
    )


def even_part(length: int, size: int) -> int:
    """Return about `size`, such that the last part of `length` is hardly smaller than the others."""
    return -(-length // max(1, round(length / size)))


class Chunks:
    """All chunks of a row, in order: `starts`, `ends` (tokens) and `sequences` of each."""

    def __init__(self, boundaries: NDArray[np.int64], chunk: int) -> None:
        lengths = np.diff(boundaries)
        # Chunks of each sequence, and the number of its first one.
        per_sequence = -(-lengths // chunk)
        first = np.cumsum(per_sequence) - per_sequence
        self.chunk = chunk
        self.sequences = np.repeat(np.arange(lengths.size), per_sequence)
        self.starts = boundaries[self.sequences] + chunk * (np.arange(self.sequences.size) - first[self.sequences])
        self.ends = np.minimum(self.starts + chunk, boundaries[self.sequences + 1])

    def pieces(self, segment: int, device: torch.device, *, with_flow: bool = False) -> list[Piece]:
        """Group the chunks into pieces of about `segment` tokens."""
        step = max(1, segment // self.chunk)
        pieces = []
        for first in range(0, self.starts.size, step):
            last = min(first + step, self.starts.size)
            flow = _to(self._flow(first, last), device) if with_flow else None
            pieces.append(self.piece(first, last, device, flow=flow))
        return pieces

    def runs(self, segment: int, device: torch.device, *, edges_apart: bool) -> list[Run]:
        """Group the chunks into runs, in order; with `edges_apart` the first and the last sequence have their own."""
        step = max(1, segment // self.chunk)
        # First chunk of each sequence, and the chunk after its last one. No run crosses a limit.
        sequence_starts = np.flatnonzero(np.diff(self.sequences, prepend=-1))
        sequence_ends = np.append(sequence_starts[1:], self.sequences.size)
        limits = [sequence_ends[0], sequence_starts[-1], sequence_ends[-1]] if edges_apart else [sequence_ends[-1]]
        runs, first = [], 0
        while first < self.sequences.size:
            end = min(first + step, next(limit for limit in limits if limit > first))
            whole = sequence_ends[(sequence_starts >= first) & (sequence_ends <= end)]
            if whole.size:  # as many whole sequences as fit a piece
                last = int(whole[-1])
                owners = self.sequences[first:last] - self.sequences[first]
                runs.append(Run([self.piece(first, last, device, owners=_to(owners, device))], int(owners[-1]) + 1))
            else:  # one long sequence
                last = int(sequence_ends[sequence_ends > first][0])
                cuts = [*range(first, last, step), last]
                runs.append(Run([self.piece(a, b, device) for a, b in itertools.pairwise(cuts)], 1))
            first = last
        return runs

    def _flow(self, first: int, last: int) -> NDArray[np.bool_]:
        """Form `Piece.flow`: contributions reach the later chunks of their own sequence."""
        own = self.sequences[first:last]
        come_in = self.sequences[max(0, first - 1)]
        reads, gives = np.append(own, own[-1]), np.insert(own, 0, come_in)
        return np.tril(reads[:, None] == gives)

    def piece(
        self, first: int, last: int, device: torch.device, *, flow: Tensor | None = None, owners: Tensor | None = None
    ) -> Piece:
        """Make a piece of the chunks [first, last)."""
        starts, ends = self.starts[first:last], self.ends[first:last]
        span = slice(int(starts[0]), int(ends[-1]))
        facts = {"flow": flow, "owners": owners}
        if (ends - starts == self.chunk).all():
            return Piece(span, last - first, self.chunk, **facts)
        # Token of each slot (N, C); those beyond the end of a chunk are empty and repeat the last token.
        tokens = starts[:, None] + np.arange(self.chunk)
        filled = (tokens < ends[:, None]).reshape(-1)
        source = np.minimum(tokens.reshape(-1), span.stop - 1) - span.start
        layout = {"source": source, "filled": filled[:, None], "slots": np.flatnonzero(filled)}
        return Piece(span, last - first, self.chunk, **{k: _to(v, device) for k, v in layout.items()}, **facts)


def _to(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
