"""Which residues of which sequences make which batch of training.

A pure function of (seed, epoch), computed piece by piece from any place on: nothing is held that grows with the corpus, a run
goes on exactly where it stopped, and any number of processes sees the same batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
from protein_lm.io.hashing import mix

_PLANNED_PLACES = 2**14
_SCANNED_SEQUENCES = 2**20


@dataclass(frozen=True, order=True)
class Place:
    """Where a batch begins."""

    epoch: int = 0
    sequence: int = 0
    """Place in the epoch's order."""
    part: int = 0
    """Within that sequence: number of its window, or with `concatenate` its first token."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """P stretches of sequences, in order."""

    indices: NDArray[np.int64]
    """(P,) sequences, by index in the corpus."""
    visits: NDArray[np.int64]
    """(P,) how often each may have come before: what is random about it changes with this."""
    starts: NDArray[np.int64]
    """(P,) first residue."""
    lengths: NDArray[np.int64]
    """(P,) residues."""
    ends: NDArray[np.bool_]
    """(P,) whether <eos> follows."""
    rows: NDArray[np.int64]
    """(P,) number of the row of the packing that each belongs to, ascending."""
    places: NDArray[np.int64]
    """(P, 2) `Place.sequence` and `Place.part` of each."""

    def __len__(self) -> int:
        return self.indices.size

    def __getitem__(self, span: slice) -> "Pieces":
        return Pieces(
            self.indices[span],
            self.visits[span],
            self.starts[span],
            self.lengths[span],
            self.ends[span],
            self.rows[span],
            self.places[span],
        )


@dataclass(frozen=True)
class Planned:
    """A batch to be."""

    epoch: int
    pieces: Pieces
    next_place: Place
    """Where the next batch begins."""


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


class TrainingPlan:
    """Batches of a store's training split, epoch after epoch, for models of one window."""

    def __init__(self, store: Corpus, config: DataConfig, *, max_length: int, seed: int) -> None:
        """Look at the lengths of the training sequences.

        Raises:
            InputError: a sequence is longer than the window and the policy is `error`.
            ConfigError: no sequence is left, or a batch does not hold the longest row.
        """
        self._store, self._config, self._seed, self._max_length = store, config, seed, max_length
        self.concatenates = config.windows is Windows.CONCATENATE
        self.max_residues = max_length - alphabet.NUM_SPECIAL_TOKENS
        self._drops_long = config.long_sequences is TrainingLongPolicy.DROP
        surveys = {name: self._survey(group) for name, group in store.groups.items()}
        self.num_sequences = sum(survey.number for survey in surveys.values())
        self.num_too_long = sum(survey.num_too_long for survey in surveys.values())
        if self.num_too_long and config.long_sequences is TrainingLongPolicy.ERROR:
            first = next(survey.first_too_long for survey in surveys.values() if survey.num_too_long)
            raise InputError(
                f"sequence {store.sequence_id(first)} has {store.length(first):,} residues; this model "
                f"reads {self.max_residues:,}; set data.long_sequences to crop, window or drop, or raise model.max_length"
            )
        if self._drops_long:
            self.num_sequences -= self.num_too_long
        if not self.num_sequences:
            raise ConfigError(f"{store.path}: no training sequence fits model.max_length {max_length}; raise it")
        if config.window_overlap >= self.max_residues:
            raise ConfigError(
                f"data.window_overlap {config.window_overlap} leaves nothing of a window of {self.max_residues} residues; "
                "lower it"
            )
        self._mixture = self._mix(surveys) if config.weights else None
        longest = max(survey.longest for survey in surveys.values())
        longest = max_length if self.concatenates else min(longest, self.max_residues) + alphabet.NUM_SPECIAL_TOKENS
        if longest > config.tokens_per_batch:
            what = "a window" if self.concatenates else "the longest sequence"
            raise ConfigError(
                f"data.tokens_per_batch {config.tokens_per_batch} is below {what} of {longest} tokens; "
                "raise it, or lower model.max_length"
            )

    def batches(self, place: Place = Place()) -> Iterator[Planned]:
        """All batches from a place on, without end; a batch never holds two epochs."""
        size = _PLANNED_PLACES
        while True:
            epoch, start = place.epoch, 0
            pieces, is_last = self._pieces(place, size)
            ends = self._ends(pieces, is_last=is_last)
            for end in ends:
                goes_on = end < len(pieces)
                place = Place(epoch, *pieces.places[end].tolist()) if goes_on else Place(epoch + 1)
                yield Planned(epoch, pieces[start:end], place)
                start = end
            if is_last and not ends:
                place = Place(epoch + 1)
            size = size if ends or is_last else 2 * size  # a batch may need more sequences than were looked at

    def _pieces(self, place: Place, size: int) -> tuple[Pieces, bool]:
        """The pieces of up to `size` places of the order, and whether the epoch ends with them."""
        total = self._store.num_sequences
        places = np.arange(place.sequence, min(place.sequence + size, total))
        indices, visits = self._order(places, place.epoch)
        lengths = self._store.lengths_of(indices)
        keep = self._store.splits[indices] == Split.TRAIN
        if self._drops_long:
            keep &= lengths <= self.max_residues
        places, indices, visits, lengths = places[keep], indices[keep], visits[keep], lengths[keep]
        part = place.part if places.size and places[0] == place.sequence else 0
        is_last = place.sequence + size >= total
        if self.concatenates:
            return self._cut(places, indices, visits, lengths, part, is_last=is_last), is_last
        return self._whole(places, indices, visits, lengths, part), is_last

    def _order(self, places: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(P,) sequences at places of an epoch, and their visits."""
        total = self._store.num_sequences
        if self._mixture:
            return self._mixture.at(places + epoch * total)
        return shuffled(places, total, self._seed, epoch), np.full(places.size, epoch)

    def _whole(
        self,
        places: NDArray[np.int64],
        indices: NDArray[np.int64],
        visits: NDArray[np.int64],
        lengths: NDArray[np.int64],
        part: int,
    ) -> Pieces:
        """Each sequence a row of its own, long ones cropped or as several windows; the first `part` windows are left out."""
        numbers = np.zeros_like(indices)
        starts = np.zeros_like(indices)
        if self._config.long_sequences is TrainingLongPolicy.WINDOW:
            stride = self.max_residues - self._config.window_overlap
            counts = 1 + -(-np.maximum(0, lengths - self.max_residues) // stride)
            owners = np.repeat(np.arange(indices.size), counts)
            numbers = (np.arange(owners.size) - np.repeat(np.cumsum(counts) - counts, counts))[part:]
            places, indices, visits, lengths = (values[owners][part:] for values in (places, indices, visits, lengths))
            starts = np.minimum(numbers * stride, np.maximum(0, lengths - self.max_residues))
        else:
            spare = np.maximum(0, lengths - self.max_residues)
            keys = keys_of_visits(visits, 1, self._seed)
            uniform = (mix(indices.astype(np.uint64) ^ keys) >> np.uint64(11)) * 2.0**-53
            starts = (uniform * (spare + 1)).astype(np.int64)
        return Pieces(
            indices,
            visits,
            starts,
            np.minimum(lengths, self.max_residues),
            np.ones(indices.size, dtype=bool),
            np.arange(indices.size),
            np.stack((places, numbers), axis=1),
        )

    def _cut(
        self,
        places: NDArray[np.int64],
        indices: NDArray[np.int64],
        visits: NDArray[np.int64],
        lengths: NDArray[np.int64],
        part: int,
        *,
        is_last: bool,
    ) -> Pieces:
        """All sequences with <eos> behind each, one after the other from token `part` of the first on, cut into windows."""
        sizes = lengths + 1
        seams = np.cumsum(sizes) - part  # where sequences end
        total = int(seams[-1]) if seams.size else 0
        last_cut = total if is_last else total // self._max_length * self._max_length
        cuts = np.append(np.arange(0, last_cut, self._max_length), last_cut)
        bounds = np.unique(np.concatenate((seams[seams < last_cut], cuts)))
        begins, stops = bounds[:-1], bounds[1:]
        owners = np.searchsorted(seams, begins, side="right")
        offsets = begins - (seams[owners] - sizes[owners])
        until = stops - (seams[owners] - sizes[owners])
        shown = np.minimum(until, lengths[owners]) - np.minimum(offsets, lengths[owners])
        return Pieces(
            indices[owners],
            visits[owners],
            offsets,
            shown,
            until == sizes[owners],
            begins // self._max_length,
            np.stack((places[owners], offsets), axis=1),
        )

    def _ends(self, pieces: Pieces, *, is_last: bool) -> list[int]:
        """Where batches end, in pieces; the last one only if the epoch ends there, or else it may not be full yet."""
        if not len(pieces):
            return []
        if self.concatenates:
            rows = self._config.tokens_per_batch // self._max_length
            last_row = int(pieces.rows[-1])
            wanted = np.arange(rows, last_row + 1 + rows * is_last, rows)
            ends = np.searchsorted(pieces.rows, wanted, side="left")
            return sorted(set(ends[ends > 0].tolist()))
        ends = filled(pieces.lengths + alphabet.NUM_SPECIAL_TOKENS, self._config.tokens_per_batch)
        return ends if is_last else ends[:-1]

    def _mix(self, surveys: "dict[str, _Survey]") -> Mixture:
        """The order by weight of the stores that have one; shares are of the sequences that are trained on."""
        weights, groups = self._config.weights or {}, self._store.groups
        if unknown := sorted(weights.keys() - groups.keys()):
            raise ConfigError(
                f"data.weights names {unknown[0]}, which is no store of {self._store.path}; it has {', '.join(groups)}"
            )
        if missing := sorted(groups.keys() - weights.keys()):
            raise ConfigError(
                f"data.weights has no weight for {missing[0]}, a store of {self._store.path}; give it one"
            )
        kept = {name: survey.number - survey.num_too_long * self._drops_long for name, survey in surveys.items()}
        for name, number in kept.items():
            if not number:
                raise ConfigError(f"data.weights: {name} has no sequence to train on; join the corpus without it")
        shares = [weights[name] * len(group) / kept[name] for name, group in groups.items()]
        return Mixture(list(groups.values()), shares, self._seed)

    def _survey(self, group: range) -> "_Survey":
        """Look at the training sequences of a store."""
        number = too_long = longest = 0
        first = -1
        for start in range(group.start, group.stop, _SCANNED_SEQUENCES):
            indices = np.arange(start, min(start + _SCANNED_SEQUENCES, group.stop))
            indices = indices[self._store.splits[indices] == Split.TRAIN]
            lengths = self._store.lengths_of(indices)
            is_long = lengths > self.max_residues
            if first < 0 and is_long.any():
                first = int(indices[np.argmax(is_long)])
            number += lengths.size
            too_long += int(is_long.sum())
            kept = lengths[~is_long] if self._drops_long else lengths
            longest = max(longest, int(kept.max(initial=0)))
        return _Survey(number, too_long, longest, first)


@dataclass(frozen=True)
class _Survey:
    number: int
    """Of training sequences."""
    num_too_long: int
    longest: int
    """Length in residues, of those that are kept."""
    first_too_long: int
