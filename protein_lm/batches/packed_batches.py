"""Sequences -> packed batches of token ids under a budget of tokens, without padding.

The crop and the mask of a sequence are a pure function of (seed, visit, its index in the corpus); its batch does not matter.
A visit is an epoch, or with weights the number of times that its store was gone through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.batches.masking import corrupted, drawn
from protein_lm.batches.order import keys_of_visits
from protein_lm.batches.plan import PlannedBatch, PlanPosition, TrainingPlan, filled, numbered
from protein_lm.choices import Objective
from protein_lm.config import DataConfig
from protein_lm.corpus.corpus import Corpus
from protein_lm.native.numpy_reader import mix

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
    ends = filled(lengths, tokens_per_batch)
    return [np.arange(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def tokens_of(sequences: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """(N,) tokens of residue arrays, special ones included."""
    return np.array([len(sequence) + alphabet.NUM_SPECIAL_TOKENS for sequence in sequences], dtype=np.int64)


class TrainingBatches:
    """The planned batches of a corpus, as tokens and targets for one objective."""

    def __init__(self, corpus: Corpus, config: DataConfig, *, objective: Objective, max_length: int, seed: int) -> None:
        """Plan the training.

        Raises:
            InputError: as `TrainingPlan`.
            ConfigError: as `TrainingPlan`.
        """
        self.plan = TrainingPlan(corpus, config, max_length=max_length, seed=seed)
        self._corpus, self._config, self._objective, self._seed = corpus, config, objective, seed

    def planned(self, position: PlanPosition) -> Iterator[PlannedBatch]:
        """All batches from a position on, without end."""
        return self.plan.batches(position)

    def batch(self, planned: PlannedBatch) -> Batch:
        """Gather, mask and pack the residues of a batch: P pieces with R residues make L tokens."""
        pieces, lead = planned.pieces, 0 if self.plan.concatenates else 1
        sizes = lead + pieces.lengths + pieces.ends  # (P,) tokens of each piece: <cls>, residues, <eos>
        firsts = np.cumsum(sizes) - sizes  # (P,) index of its first token
        rows = pieces.rows - pieces.rows[0]
        packing = Packing.of_lengths(np.bincount(rows, sizes).astype(np.int64))
        owners, within = numbered(pieces.lengths)  # (R,) piece of each residue, and its number in the piece
        indices = (firsts + lead)[owners] + within  # (R,) index of its token
        in_sequence = pieces.starts[owners] + within  # (R,) its number in the whole sequence
        begins = self._corpus.offsets_of(pieces.indices)  # (P,) first residue of each sequence in the corpus
        residues = self._corpus.residues_at(begins[owners] + in_sequence).astype(np.int64)
        tokens = np.empty(packing.length, dtype=np.int64)
        if lead:
            tokens[firsts] = alphabet.CLS
        tokens[(firsts + sizes - 1)[pieces.ends]] = alphabet.EOS
        tokens[indices] = residues
        row = torch.from_numpy(tokens)[None]
        if self._objective is Objective.CAUSAL:
            return Batch(row, packing, causal_targets(row, packing))
        # (R,) a random number for each residue, from the seed, its visit, its sequence and its number there.
        keys = keys_of_visits(pieces.visits, 2, self._seed)
        draws = mix(mix(pieces.indices.astype(np.uint64) ^ keys)[owners] + in_sequence.astype(np.uint64))
        counts = np.maximum(1, np.rint(self._config.mask_fraction * pieces.lengths).astype(np.int64))
        chosen = drawn(draws, pieces.lengths, np.minimum(counts, pieces.lengths))  # (K,) residues to predict
        indices, residues = indices[chosen], residues[chosen]
        targets = np.full(packing.length, IGNORED, dtype=np.int64)
        targets[indices] = residues
        tokens[indices] = corrupted(residues, mix(draws[chosen]))  # `row` shares this memory
        return Batch(row, packing, torch.from_numpy(targets)[None])
