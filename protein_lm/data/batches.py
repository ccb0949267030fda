"""Sequences -> packed batches of token ids under a budget of tokens, without padding.

The order of training is a pure function of (seed, epoch): a run goes on exactly where it stopped. What happens to one
sequence (crop, mask) is a pure function of (seed, epoch, its index in the store), whatever batch it is in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.choices import LongPolicy, Objective
from protein_lm.config import DataConfig
from protein_lm.data.masking import choose_positions, corrupt
from protein_lm.data.split import Split
from protein_lm.data.store import TokenStore
from protein_lm.errors import ConfigError, InputError

IGNORED = -100
"""Target of positions that are not predicted."""


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
        """Choose the sequences.

        Raises:
            InputError: a sequence is longer than the window and the policy is `error`.
            ConfigError: no sequence is left, or the batch is smaller than the longest sequence.
        """
        self.store, self.config, self.objective, self.seed = store, config, objective, seed
        self.max_residues = max_length - alphabet.NUM_SPECIAL_TOKENS
        self.indices = store.indices(Split.TRAIN)
        residues = np.asarray(store.lengths)[self.indices]
        too_long = residues > self.max_residues
        self.num_too_long = int(too_long.sum())
        if self.num_too_long and config.long_sequences is LongPolicy.ERROR:
            first = int(self.indices[too_long][0])
            raise InputError(
                f"sequence {store.sequence_id(first)} has {int(store.lengths[first]):,} residues; this model reads "
                f"{self.max_residues:,}; set data.long_sequences to crop or drop, or raise model.max_length"
            )
        if config.long_sequences is LongPolicy.DROP:
            self.indices, residues = self.indices[~too_long], residues[~too_long]
        if not self.indices.size:
            raise ConfigError(f"{store.path}: no training sequence fits model.max_length {max_length}; raise it")
        self.lengths = np.minimum(residues, self.max_residues) + alphabet.NUM_SPECIAL_TOKENS
        if (longest := int(self.lengths.max())) > config.tokens_per_batch:
            raise ConfigError(
                f"data.tokens_per_batch {config.tokens_per_batch} is below the longest sequence of {longest} tokens; "
                "raise it, or lower model.max_length"
            )

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch in order, each an array of positions in `indices`."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.indices.size)
        return [order[group] for group in fill(self.lengths[order], self.config.tokens_per_batch)]

    def batch(self, epoch: int, members: NDArray[np.int64]) -> Batch:
        """Crop, mask and pack the sequences of one batch."""
        shown, originals, chosen = [], [], []
        for index in self.indices[members]:
            generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, int(index)]))
            residues = self._crop(self.store.residues(int(index)), generator)
            originals.append(residues)
            if self.objective is Objective.MASKED:
                positions = choose_positions(residues.size, self.config.mask_fraction, generator)
                chosen.append(positions)
                shown.append(corrupt(residues, positions, generator))
        if self.objective is Objective.CAUSAL:
            tokens, packing = pack(originals)
            return Batch(tokens, packing, causal_targets(tokens, packing))
        tokens, packing = pack(shown)
        targets = torch.full_like(tokens, IGNORED)
        for start, residues, positions in zip(packing.boundaries, originals, chosen, strict=False):
            targets[0, start + 1 + positions] = torch.from_numpy(residues[positions].astype(np.int64))
        return Batch(tokens, packing, targets)

    def _crop(self, residues: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        if residues.size <= self.max_residues:
            return np.asarray(residues)
        start = int(generator.integers(residues.size - self.max_residues + 1))
        return np.asarray(residues[start : start + self.max_residues])
