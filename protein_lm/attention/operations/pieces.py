"""How linear attention walks a row: pieces that fit the cache, each of chunks that belong to one sequence.

A row that is one sequence is cut evenly. A packed row is cut so that every chunk holds tokens of one sequence only: the
last chunk of a sequence has places that stay empty, and tokens are gathered into chunks and back a piece at a time.
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
    """Tokens `span` of the row, walked as `num_chunks` chunks of `chunk` places each."""

    span: slice
    num_chunks: int
    chunk: int
    source: Tensor | None = None
    """(num_chunks × chunk,) token of the span in each place, any where the place is empty. None: places are tokens."""
    filled: Tensor | None = None
    """(num_chunks × chunk, 1) whether a place holds a token."""
    places: Tensor | None = None
    """(tokens of the span,) the place of each token."""
    flow: Tensor | None = None
    """Causal: (num_chunks + 1, num_chunks + 1) boolean. Row c: which of [the state that comes in, the contributions of the
    chunks] make the state that chunk c starts from; last row: the state that goes out. None: all that came before."""
    owners: Tensor | None = None
    """Bidirectional: (num_chunks,) the sequence of the run that each chunk belongs to. None: there is one."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces that share the states of `num_sequences` sequences: one piece, or all pieces of one long sequence."""

    pieces: list[Piece]
    num_sequences: int


def causal_pieces(length: int, chunk: int, segment: int, packing: Packing | None, device: torch.device) -> list[Piece]:
    """Pieces of about `segment` tokens in chunks of about `chunk`, in order."""
    if packing is None:
        chunk = even_part(length, chunk)
        return Chunks(np.array([0, length]), chunk).pieces(segment, device)
    key = "causal", chunk, segment, device
    return packing.plan(key, lambda: Chunks(packing.boundaries, chunk).pieces(segment, device, with_flow=True))


def bidirectional_runs(
    length: int, chunk: int, segment: int, packing: Packing | None, device: torch.device
) -> list[Run]:
    """Runs of pieces of about `segment` tokens; only a packed row is cut into chunks, of `chunk` places."""
    if packing is None:
        size = even_part(length, segment)
        spans = [slice(start, min(start + size, length)) for start in range(0, length, size)]
        return [Run([Piece(span, 1, span.stop - span.start) for span in spans], 1)]
    key = "bidirectional", chunk, segment, device
    return packing.plan(
        key, lambda: Chunks(packing.boundaries, chunk).runs(segment, device, edges_apart=packing.goes_on)
    )


def even_part(length: int, size: int) -> int:
    """About `size`, such that the last part of `length` is hardly smaller than the others."""
    return -(-length // max(1, round(length / size)))


class Chunks:
    """All chunks of a row, in order: first token, number of tokens and sequence of each."""

    def __init__(self, boundaries: NDArray[np.int64], chunk: int) -> None:
        lengths = np.diff(boundaries)
        per_sequence = -(-lengths // chunk)
        first = np.cumsum(per_sequence) - per_sequence
        self.chunk = chunk
        self.sequences = np.repeat(np.arange(lengths.size), per_sequence)
        self.starts = boundaries[self.sequences] + chunk * (np.arange(self.sequences.size) - first[self.sequences])
        self.ends = np.minimum(self.starts + chunk, boundaries[self.sequences + 1])

    def pieces(self, segment: int, device: torch.device, *, with_flow: bool = False) -> list[Piece]:
        step = max(1, segment // self.chunk)
        pieces = []
        for first in range(0, self.starts.size, step):
            last = min(first + step, self.starts.size)
            flow = _to(self._flow(first, last), device) if with_flow else None
            pieces.append(self.piece(first, last, device, flow=flow))
        return pieces

    def runs(self, segment: int, device: torch.device, *, edges_apart: bool) -> list[Run]:
        """Runs in order; `edges_apart` gives the first and the last sequence runs of their own."""
        step = max(1, segment // self.chunk)
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
        """See `Piece.flow`: contributions reach the later chunks of their own sequence."""
        own = self.sequences[first:last]
        come_in = self.sequences[max(0, first - 1)]
        reads, gives = np.append(own, own[-1]), np.insert(own, 0, come_in)
        return np.tril(reads[:, None] == gives)

    def piece(
        self, first: int, last: int, device: torch.device, *, flow: Tensor | None = None, owners: Tensor | None = None
    ) -> Piece:
        starts, ends = self.starts[first:last], self.ends[first:last]
        span = slice(int(starts[0]), int(ends[-1]))
        facts = {"flow": flow, "owners": owners}
        if (ends - starts == self.chunk).all():
            return Piece(span, last - first, self.chunk, **facts)
        tokens = starts[:, None] + np.arange(self.chunk)
        filled = (tokens < ends[:, None]).reshape(-1)
        source = np.minimum(tokens.reshape(-1), span.stop - 1) - span.start
        layout = {"source": source, "filled": filled[:, None], "places": np.flatnonzero(filled)}
        return Piece(span, last - first, self.chunk, **{k: _to(v, device) for k, v in layout.items()}, **facts)


def _to(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
