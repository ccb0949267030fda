"""Which residues of which sequences make which batch of training.

A plan is a pure function of (seed, epoch), computed piece by piece from any position on. It holds nothing that grows with the
corpus, a run resumes exactly where it stopped, and any number of processes sees the same batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.batches.mixture import Mixture
from protein_lm.batches.order import keys_of_visits, shuffled
from protein_lm.choices import TrainingLongPolicy, Windows
from protein_lm.config import DataConfig
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, InputError
from protein_lm.native.numpy_reader import mix

_PLANNED_POSITIONS = 2**14
"""Positions of the order that are planned at once."""
_SCANNED_SEQUENCES = 2**20


@dataclass(frozen=True, order=True)
class PlanPosition:
    """Where a batch begins."""

    epoch: int = 0
    sequence: int = 0
    """Position of its first sequence in the epoch's order."""
    part: int = 0
    """Within that sequence: number of its window, or with `concatenate` its first token."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """P stretches of sequences, in order."""

    indices: NDArray[np.int64]
    """(P,) sequences, by index in the corpus."""
    visits: NDArray[np.int64]
    """(P,) how often each sequence may have come before; random choices depend on it."""
    starts: NDArray[np.int64]
    """(P,) first residue."""
    lengths: NDArray[np.int64]
    """(P,) residues."""
    ends: NDArray[np.bool_]
    """(P,) whether <eos> follows."""
    rows: NDArray[np.int64]
    """(P,) number of the row of the packing that each belongs to, ascending."""
    positions: NDArray[np.int64]
    """(P, 2) `PlanPosition.sequence` and `PlanPosition.part` of each."""

    def __len__(self) -> int:
        return self.indices.size

    def __getitem__(self, span: slice) -> "Pieces":
        return Pieces(*(getattr(self, field.name)[span] for field in fields(self)))


@dataclass(frozen=True)
class PlannedBatch:
    """The pieces of a batch."""

    epoch: int
    pieces: Pieces
    next_position: PlanPosition
    """Where the next batch begins."""


class _Order(NamedTuple):
    """S sequences in the order of training."""

    positions: NDArray[np.int64]
    """(S,) in the epoch's order."""
    indices: NDArray[np.int64]
    """(S,) in the corpus."""
    visits: NDArray[np.int64]
    """(S,) how often each may have come before."""
    lengths: NDArray[np.int64]
    """(S,) residues."""

    def at(self, chosen: NDArray) -> "_Order":
        """The sequences of some indices, or under a mask."""
        return _Order(*(values[chosen] for values in self))


class _Survey(NamedTuple):
    """Facts about the training sequences of one store."""

    number: int
    num_too_long: int
    longest: int
    """Residues of the longest sequence that is kept."""
    first_too_long: int
    """Index of the first sequence over the window, -1 if there is none."""


def filled(lengths: NDArray[np.int64], budget: int) -> list[int]:
    """Where parts of `lengths` end whose sums are as large as the budget lets them; one that is over it stands alone.

    >>> filled(np.array([500, 2, 98, 1]), 100)
    [1, 3, 4]
    """
    sums, ends, start = np.cumsum(lengths), [], 0
    while start < lengths.size:
        before = int(sums[start - 1]) if start else 0
        start = max(start + 1, int(np.searchsorted(sums, before + budget, side="right")))
        ends.append(start)
    return ends


def numbered(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For groups of some sizes back to back: (T,) the group of each member, and (T,) its number within the group.

    >>> numbered(np.array([2, 0, 3]))
    (array([0, 0, 2, 2, 2]), array([0, 1, 0, 1, 2]))
    """
    groups = np.repeat(np.arange(counts.size), counts)
    return groups, np.arange(groups.size) - np.repeat(np.cumsum(counts) - counts, counts)


class TrainingPlan:
    """Batches of a corpus's training split, epoch after epoch, for models of one window."""

    def __init__(self, corpus: Corpus, config: DataConfig, *, max_length: int, seed: int) -> None:
        """Look at the lengths of the training sequences.

        Raises:
            InputError: a sequence is longer than the window and the policy is `error`.
            ConfigError: no sequence is left, or a batch does not hold the longest row.
        """
        self._corpus, self._config, self._seed, self._max_length = corpus, config, seed, max_length
        self.concatenates = config.windows is Windows.CONCATENATE
        self.max_residues = max_length - alphabet.NUM_SPECIAL_TOKENS
        self._drops_long = config.long_sequences is TrainingLongPolicy.DROP
        surveys = {name: self._survey(group) for name, group in corpus.groups.items()}
        self.num_sequences = sum(survey.number for survey in surveys.values())
        self.num_too_long = sum(survey.num_too_long for survey in surveys.values())
        if self.num_too_long and config.long_sequences is TrainingLongPolicy.ERROR:
            first = next(survey.first_too_long for survey in surveys.values() if survey.num_too_long)
            raise InputError(
                f"sequence {corpus.sequence_id(first)} has {corpus.length(first):,} residues; this model "
                f"reads {self.max_residues:,}; set data.long_sequences to crop, window or drop, or raise model.max_length"
            )
        if self._drops_long:
            self.num_sequences -= self.num_too_long
        if not self.num_sequences:
            raise ConfigError(f"{corpus.path}: no training sequence fits model.max_length {max_length}; raise it")
        if config.window_overlap >= self.max_residues:
            raise ConfigError(
                f"data.window_overlap {config.window_overlap} leaves nothing of a window of {self.max_residues} residues; "
                "lower it"
            )
        self._mixture = self._mix(surveys) if config.weights else None
        longest = max(survey.longest for survey in surveys.values())
        check_budget(
            max_length if self.concatenates else min(longest, self.max_residues) + alphabet.NUM_SPECIAL_TOKENS,
            config.tokens_per_batch,
            row="a window" if self.concatenates else "the longest sequence",
        )

    def batches(self, position: PlanPosition = PlanPosition()) -> Iterator[PlannedBatch]:
        """All batches from a position on, without end; a batch never holds two epochs."""
        size = _PLANNED_POSITIONS
        while True:
            epoch, start = position.epoch, 0
            pieces, is_last = self._pieces(position, size)
            ends = self._ends(pieces, is_last=is_last)
            for end in ends:
                is_inside = end < len(pieces)
                position = (
                    PlanPosition(epoch, *pieces.positions[end].tolist()) if is_inside else PlanPosition(epoch + 1)
                )
                yield PlannedBatch(epoch, pieces[start:end], position)
                start = end
            if is_last and not ends:
                position = PlanPosition(epoch + 1)
            size = size if ends or is_last else 2 * size  # a batch may need more sequences than were looked at

    def _pieces(self, position: PlanPosition, size: int) -> tuple[Pieces, bool]:
        """The pieces of up to `size` positions of the order, and whether the epoch ends with them."""
        total = self._corpus.num_sequences
        is_last = position.sequence + size >= total
        order = self._order(np.arange(position.sequence, min(position.sequence + size, total)), position.epoch)
        keep = self._corpus.splits[order.indices] == Split.TRAIN
        if self._drops_long:
            keep &= order.lengths <= self.max_residues
        order = order.at(keep)
        # The first sequence may have been begun by the batch before; if it is not kept, no part of it was.
        part = position.part if keep.size and keep[0] else 0
        if self.concatenates:
            return self._cut(order, part, is_last=is_last), is_last
        if self._config.long_sequences is TrainingLongPolicy.WINDOW:
            return self._windows(order)[part:], is_last
        return self._crops(order), is_last

    def _order(self, positions: NDArray[np.int64], epoch: int) -> _Order:
        """The sequences at some positions of an epoch."""
        total = self._corpus.num_sequences
        if self._mixture:
            indices, visits = self._mixture.at(positions + epoch * total)
        else:
            indices, visits = shuffled(positions, total, self._seed, epoch), np.full(positions.size, epoch)
        return _Order(positions, indices, visits, self._corpus.lengths_of(indices))

    def _crops(self, order: _Order) -> Pieces:
        """One row for each sequence; of a long one, a window that begins at a random residue."""
        keys = keys_of_visits(order.visits, 1, self._seed)
        uniform = (mix(order.indices.astype(np.uint64) ^ keys) >> np.uint64(11)) * 2.0**-53  # (S,) in [0, 1)
        starts = (uniform * (np.maximum(0, order.lengths - self.max_residues) + 1)).astype(np.int64)
        return self._rows(order, starts, np.zeros_like(starts))

    def _windows(self, order: _Order) -> Pieces:
        """One row for each window of each sequence. The last window of a sequence ends with it."""
        stride = self.max_residues - self._config.window_overlap
        spare = np.maximum(0, order.lengths - self.max_residues)  # (S,) residues beyond the first window
        owners, numbers = numbered(1 + -(-spare // stride))  # (P,) sequence of each window, and its number there
        return self._rows(order.at(owners), np.minimum(numbers * stride, spare[owners]), numbers)

    def _rows(self, order: _Order, starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> Pieces:
        """Pieces that are rows of their own, from `starts` to the end of a window or of the sequence."""
        return Pieces(
            order.indices,
            order.visits,
            starts,
            np.minimum(order.lengths, self.max_residues),
            np.ones(starts.size, dtype=bool),
            np.arange(starts.size),
            np.stack((order.positions, numbers), axis=1),
        )

    def _cut(self, order: _Order, part: int, *, is_last: bool) -> Pieces:
        """Rows of one window each, cut out of the stream of all sequences with <eos> behind each.

        The stream begins with token `part` of the first sequence. Only the last row of an epoch may be shorter.
        """
        sizes = order.lengths + 1  # (S,) tokens of each sequence, <eos> included
        seams = np.cumsum(sizes) - part  # (S,) where sequences end in the stream
        total = int(seams[-1]) if seams.size else 0
        last_cut = total if is_last else total // self._max_length * self._max_length
        cuts = np.append(np.arange(0, last_cut, self._max_length), last_cut)
        # (P + 1,) where pieces begin and end in the stream: at the seams and at the cuts.
        bounds = np.unique(np.concatenate((seams[seams < last_cut], cuts)))
        begins, stops = bounds[:-1], bounds[1:]
        owners = np.searchsorted(seams, begins, side="right")  # (P,) sequence of each piece
        firsts = seams[owners] - sizes[owners]  # (P,) where that sequence begins in the stream
        offsets, until = begins - firsts, stops - firsts  # (P,) first token of the piece in its sequence, and its end
        lengths = order.lengths[owners]
        return Pieces(
            order.indices[owners],
            order.visits[owners],
            offsets,
            np.minimum(until, lengths) - np.minimum(offsets, lengths),
            until == sizes[owners],
            begins // self._max_length,
            np.stack((order.positions[owners], offsets), axis=1),
        )

    def _ends(self, pieces: Pieces, *, is_last: bool) -> list[int]:
        """Where batches end, in pieces. Only at the end of an epoch is the last batch among them: it may not be full yet."""
        if not len(pieces):
            return []
        if not self.concatenates:
            ends = filled(pieces.lengths + alphabet.NUM_SPECIAL_TOKENS, self._config.tokens_per_batch)
            return ends if is_last else ends[:-1]
        rows = self._config.tokens_per_batch // self._max_length  # of a batch
        wanted = np.arange(rows, int(pieces.rows[-1]) + 1 + rows * is_last, rows)  # (B,) first row after each batch
        ends = np.searchsorted(pieces.rows, wanted, side="left")
        return sorted(set(ends[ends > 0].tolist()))

    def _mix(self, surveys: dict[str, _Survey]) -> Mixture:
        """The order by weight of the stores that have one; shares are of the sequences that are trained on."""
        weights, groups = self._config.weights or {}, self._corpus.groups
        if unknown := sorted(weights.keys() - groups.keys()):
            raise ConfigError(
                f"data.weights names {unknown[0]}, which is no store of {self._corpus.path}; it has {', '.join(groups)}"
            )
        if missing := sorted(groups.keys() - weights.keys()):
            raise ConfigError(
                f"data.weights has no weight for {missing[0]}, a store of {self._corpus.path}; give it one"
            )
        kept = {name: survey.number - survey.num_too_long * self._drops_long for name, survey in surveys.items()}
        if empty := [name for name, number in kept.items() if not number]:
            raise ConfigError(f"data.weights: {empty[0]} has no sequence to train on; join the corpus without it")
        shares = [weights[name] * len(group) / kept[name] for name, group in groups.items()]
        return Mixture(list(groups.values()), shares, self._seed)

    def _survey(self, group: range) -> _Survey:
        """Look at the training sequences of a store."""
        number = too_long = longest = 0
        first = -1
        for start in range(group.start, group.stop, _SCANNED_SEQUENCES):
            indices = np.arange(start, min(start + _SCANNED_SEQUENCES, group.stop))
            indices = indices[self._corpus.splits[indices] == Split.TRAIN]
            lengths = self._corpus.lengths_of(indices)
            is_long = lengths > self.max_residues
            if first < 0 and is_long.any():
                first = int(indices[np.argmax(is_long)])
            number += lengths.size
            too_long += int(is_long.sum())
            kept = lengths[~is_long] if self._drops_long else lengths
            longest = max(longest, int(kept.max(initial=0)))
        return _Survey(number, too_long, longest, first)


def check_budget(longest: int, tokens_per_batch: int, *, row: str) -> None:
    """Make sure that a batch holds the longest row.

    Raises:
        ConfigError: it does not.
    """
    if longest > tokens_per_batch:
        raise ConfigError(
            f"data.tokens_per_batch {tokens_per_batch} is below {row} of {longest} tokens; raise it, or lower "
            "model.max_length"
        )
