"""Sequences -> padded batches of token ids, grouped by length under a budget of tokens.

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
from protein_lm.choices import LongPolicy
from protein_lm.config import DataConfig, Objective
from protein_lm.data.masking import choose_positions, corrupt
from protein_lm.data.split import Split
from protein_lm.data.store import TokenStore
from protein_lm.errors import ConfigError, InputError

IGNORED = -100
"""Target of positions that are not predicted."""
POOL_BATCHES = 50
"""Shuffled sequences are sorted by length within pools of about this many batches: little padding, still random."""


@dataclass(frozen=True)
class Batch:
    """Padded sequences with their special tokens."""

    tokens: Tensor
    """(B, L) int64, <cls> before and <eos> after each sequence, then <pad>."""
    valid_mask: Tensor
    """(B, L) boolean, True for real tokens, special ones included."""
    targets: Tensor
    """(B, L) int64, the token to predict at each position, IGNORED where none is."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        return Batch(self.tokens.to(device), self.valid_mask.to(device), self.targets.to(device))


def pad(sequences: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) and valid_mask (B, L) of residue arrays, with <cls> and <eos> around each."""
    shape = len(sequences), max(len(sequence) for sequence in sequences) + alphabet.NUM_SPECIAL_TOKENS
    tokens, valid = np.full(shape, alphabet.PAD, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, sequence in enumerate(sequences):
        end = len(sequence) + 1
        tokens[row, 0], tokens[row, 1:end], tokens[row, end] = alphabet.CLS, sequence, alphabet.EOS
        valid[row, : end + 1] = True
    return torch.from_numpy(tokens), torch.from_numpy(valid)


def causal_targets(tokens: Tensor, valid_mask: Tensor) -> Tensor:
    """Targets (B, L) of a causal model: the next token, <eos> included, IGNORED behind it."""
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = torch.where(valid_mask[:, 1:], tokens[:, 1:], IGNORED)
    return targets


def group_by_length(lengths: NDArray[np.int64], tokens_per_batch: int) -> list[NDArray[np.int64]]:
    """Indices into `lengths`, sorted by length, cut so that rows × longest row stays within `tokens_per_batch`.

    A sequence that alone is over the budget makes a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    groups, start = [], 0
    while start < order.size:
        rows = max(1, tokens_per_batch // int(lengths[order[start]]))
        groups.append(order[start : start + rows])
        start += rows
    return groups


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
        pool_size = max(1, POOL_BATCHES * self.config.tokens_per_batch // max(1, int(self.lengths.mean())))
        batches = []
        for start in range(0, order.size, pool_size):
            pool = order[start : start + pool_size]
            batches.extend(pool[group] for group in group_by_length(self.lengths[pool], self.config.tokens_per_batch))
        return [batches[position] for position in generator.permutation(len(batches))]

    def batch(self, epoch: int, members: NDArray[np.int64]) -> Batch:
        """Crop, mask and pad the sequences of one batch."""
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
            tokens, valid_mask = pad(originals)
            return Batch(tokens, valid_mask, causal_targets(tokens, valid_mask))
        tokens, valid_mask = pad(shown)
        targets = torch.full_like(tokens, IGNORED)
        for row, (residues, positions) in enumerate(zip(originals, chosen, strict=True)):
            targets[row, positions + 1] = torch.from_numpy(residues[positions].astype(np.int64))
        return Batch(tokens, valid_mask, targets)

    def _crop(self, residues: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        if residues.size <= self.max_residues:
            return np.asarray(residues)
        start = int(generator.integers(residues.size - self.max_residues + 1))
        return np.asarray(residues[start : start + self.max_residues])
