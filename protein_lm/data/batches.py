"""Sequences -> packed batches of token ids under a budget of tokens, without padding.

The order of training is a pure function of (seed, epoch), computed place by place: a run goes on exactly where it stopped,
and nothing is held that grows with the corpus. What happens to one sequence (crop, mask) is a pure function of (seed, epoch,
its index in the store), whatever batch it is in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.choices import LongPolicy, Objective
from protein_lm.config import DataConfig
from protein_lm.data.hashing import mix
from protein_lm.data.masking import corrupted, ranks
from protein_lm.data.order import round_keys, shuffled
from protein_lm.data.split import Split
from protein_lm.data.store import TokenStore
from protein_lm.errors import ConfigError, InputError

IGNORED = -100
"""Target of positions that are not predicted."""
_PLANNED_PLACES = 2**14
_SCANNED_SEQUENCES = 2**20


@dataclass(frozen=True)
class Batch:
    """Sequences with their special tokens, back to back in one row."""

    tokens: Tensor
    """(1, L) int64, <cls> before and <eos> after each sequence."""
    packing: Packing
    """Where each sequence begins and ends."""
    targets: Tensor
    """(1, L) int64, the token to predict at each position, IGNORED where none is."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        return Batch(self.tokens.to(device), self.packing, self.targets.to(device))


@dataclass(frozen=True)
class Planned:
    """Which sequences make a batch, and where the order goes on."""

    epoch: int
    indices: NDArray[np.int64]
    """Of sequences in the store."""
    next_epoch: int
    next_place: int
    """Place in the order of `next_epoch` where the next batch begins."""


def pack(sequences: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Packing]:
    """Tokens (1, L) of residue arrays, with <cls> and <eos> around each, and their packing."""
    packing = Packing.of_lengths(len(sequence) + alphabet.NUM_SPECIAL_TOKENS for sequence in sequences)
    tokens = np.empty(packing.length, dtype=np.int64)
    for start, sequence in zip(packing.boundaries, sequences, strict=False):
        end = start + 1 + len(sequence)
        tokens[start], tokens[start + 1 : end], tokens[end] = alphabet.CLS, sequence, alphabet.EOS
    return torch.from_numpy(tokens)[None], packing


def causal_targets(tokens: Tensor, packing: Packing) -> Tensor:
    """Targets (1, L) of a causal model: the next token of the same sequence, <eos> included, IGNORED behind it."""
    targets = torch.cat((tokens[:, 1:], tokens.new_full((1, 1), IGNORED)), dim=1)
    targets[0, packing.boundaries[1:] - 1] = IGNORED
    return targets


def fill(lengths: NDArray[np.int64], tokens_per_batch: int) -> list[NDArray[np.int64]]:
    """Indices into `lengths`, in order, cut so that the sum of each part stays within `tokens_per_batch`.

    A sequence that alone is over the budget makes a batch of its own.
    """
    ends = np.cumsum(lengths)
    groups, start = [], 0
    while start < lengths.size:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + tokens_per_batch, side="right")))
        groups.append(np.arange(start, stop))
        start = stop
    return groups


def tokens_of(sequences: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """(N,) tokens of residue arrays, special ones included."""
    return np.array([len(sequence) + alphabet.NUM_SPECIAL_TOKENS for sequence in sequences], dtype=np.int64)


class TrainingBatches:
    """Batches of a store's training split, epoch after epoch, for one model window and objective."""

    def __init__(
        self, store: TokenStore, config: DataConfig, *, objective: Objective, max_length: int, seed: int
    ) -> None:
        """Look at the lengths of the training sequences.

        Raises:
            InputError: a sequence is longer than the window and the policy is `error`.
            ConfigError: no sequence is left, or the batch is smaller than the longest sequence.
        """
        self.store, self.config, self.objective, self.seed = store, config, objective, seed
        self.max_residues = max_length - alphabet.NUM_SPECIAL_TOKENS
        self._drops_long = config.long_sequences is LongPolicy.DROP
        self.num_sequences, self.num_too_long, longest, first_too_long = self._survey()
        if self.num_too_long and config.long_sequences is LongPolicy.ERROR:
            raise InputError(
                f"sequence {store.sequence_id(first_too_long)} has {store.length(first_too_long):,} residues; this model "
                f"reads {self.max_residues:,}; set data.long_sequences to crop or drop, or raise model.max_length"
            )
        if self._drops_long:
            self.num_sequences -= self.num_too_long
        if not self.num_sequences:
            raise ConfigError(f"{store.path}: no training sequence fits model.max_length {max_length}; raise it")
        longest = min(longest, self.max_residues) + alphabet.NUM_SPECIAL_TOKENS
        if longest > config.tokens_per_batch:
            raise ConfigError(
                f"data.tokens_per_batch {config.tokens_per_batch} is below the longest sequence of {longest} tokens; "
                "raise it, or lower model.max_length"
            )

    def plan(self, epoch: int = 0, place: int = 0) -> Iterator[Planned]:
        """All batches from a place in the order of an epoch on, without end; a batch never holds two epochs."""
        for number in count(epoch):
            yield from self._plan_epoch(number, place if number == epoch else 0)

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> Batch:
        """Crop, mask and pack the sequences of one batch."""
        lengths = self.store.lengths_of(indices)
        starts = self.store.offsets[indices] + self._crops(epoch, indices, lengths)
        lengths = np.minimum(lengths, self.max_residues)
        packing = Packing.of_lengths(lengths + alphabet.NUM_SPECIAL_TOKENS)
        first = packing.boundaries[:-1] + 1
        owners = np.repeat(np.arange(indices.size), lengths)
        within = np.arange(owners.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = first[owners] + within
        residues = self.store.tokens[starts[owners] + within].astype(np.int64)
        tokens = np.empty(packing.length, dtype=np.int64)
        tokens[packing.boundaries[:-1]], tokens[packing.boundaries[1:] - 1] = alphabet.CLS, alphabet.EOS
        tokens[places] = residues
        row = torch.from_numpy(tokens)[None]
        if self.objective is Objective.CAUSAL:
            return Batch(row, packing, causal_targets(row, packing))
        key = round_keys(2, self.seed, epoch)[1]
        draws = mix(mix(indices.astype(np.uint64) ^ key)[owners] + within.astype(np.uint64))
        num_chosen = np.maximum(1, np.rint(self.config.mask_fraction * lengths).astype(np.int64))
        chosen = ranks(draws, owners, lengths) < num_chosen[owners]
        targets = np.full(packing.length, IGNORED, dtype=np.int64)
        targets[places[chosen]] = residues[chosen]
        tokens[places[chosen]] = corrupted(residues[chosen], mix(draws[chosen]))
        return Batch(row, packing, torch.from_numpy(targets)[None])

    def _survey(self) -> tuple[int, int, int, int]:
        """Number of training sequences, and of those over the window; longest length of those kept; first too long."""
        number = too_long = longest = 0
        first = -1
        for start in range(0, self.store.num_sequences, _SCANNED_SEQUENCES):
            stop = start + _SCANNED_SEQUENCES
            chosen = self.store.splits[start:stop] == Split.TRAIN
            lengths = np.diff(self.store.offsets[start : stop + 1])[chosen]
            is_long = lengths > self.max_residues
            if first < 0 and is_long.any():
                first = start + int(np.flatnonzero(chosen)[np.argmax(is_long)])
            number += lengths.size
            too_long += int(is_long.sum())
            kept = lengths[~is_long] if self._drops_long else lengths
            longest = max(longest, int(kept.max(initial=0)))
        return number, too_long, longest, first

    def _plan_epoch(self, epoch: int, place: int) -> Iterator[Planned]:
        size = self.store.num_sequences
        places, indices, lengths = (np.empty(0, dtype=np.int64) for _ in range(3))
        while place < size or indices.size:
            more = np.arange(place, min(place + _PLANNED_PLACES, size))
            place += more.size
            drawn = shuffled(more, size, self.seed, epoch)
            drawn_lengths = self.store.lengths_of(drawn)
            keep = self.store.splits[drawn] == Split.TRAIN
            if self._drops_long:
                keep &= drawn_lengths <= self.max_residues
            tokens = np.minimum(drawn_lengths, self.max_residues) + alphabet.NUM_SPECIAL_TOKENS
            places = np.concatenate((places, more[keep]))
            indices = np.concatenate((indices, drawn[keep]))
            lengths = np.concatenate((lengths, tokens[keep]))
            groups = fill(lengths, self.config.tokens_per_batch)
            if place < size and groups:
                groups.pop()  # what comes next may still fit into it
            for group in groups:
                end = int(group[-1]) + 1
                is_last = place >= size and end == indices.size
                next_place = (epoch + 1, 0) if is_last else (epoch, int(places[end - 1]) + 1)
                yield Planned(epoch, indices[group], *next_place)
            used = int(groups[-1][-1]) + 1 if groups else 0
            places, indices, lengths = places[used:], indices[used:], lengths[used:]

    def _crops(self, epoch: int, indices: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) first residue shown of each sequence."""
        spare = np.maximum(0, lengths - self.max_residues)
        uniform = (mix(indices.astype(np.uint64) ^ round_keys(1, self.seed, epoch)[0]) >> np.uint64(11)) * 2.0**-53
        return (uniform * (spare + 1)).astype(np.int64)
