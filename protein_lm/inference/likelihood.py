"""Log-probabilities of residues: the one place that knows which token position predicts which residue.

A sequence of n residues is <cls> r₁ … rₙ <eos>. A causal model predicts rᵢ at position i - 1 (r₁ at <cls>), a masked model
at position i. Special tokens are never counted; the logits run over the whole alphabet.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.data.batches import group_by_length, pad
from protein_lm.data.masking import choose_positions, hide
from protein_lm.model.language_model import ProteinLM

Residues = NDArray[np.uint8]
EVALUATION_MASK_FRACTION = 0.15


class ResidueLogProbabilities(NamedTuple):
    """What a model says of the scored residues of one sequence."""

    log_probabilities: NDArray[np.float64]
    """(k,) natural logarithm of the probability of each scored residue."""
    correct: NDArray[np.bool_]
    """(k,) whether it was the most probable token."""


def causal_log_probabilities(
    model: ProteinLM, sequences: Sequence[Residues], *, tokens_per_batch: int
) -> list[ResidueLogProbabilities]:
    """Every residue from those before it, for each of `sequences`, in their order."""
    results: list[ResidueLogProbabilities | None] = [None] * len(sequences)
    for members in _groups(sequences, tokens_per_batch):
        tokens, valid_mask = pad([sequences[i] for i in members])
        # <eos> is neither an input that predicts a residue nor a residue: leave it out on both sides.
        selected = valid_mask.clone()
        lengths = valid_mask.sum(1)
        selected[torch.arange(len(members)), lengths - 1] = False
        selected[torch.arange(len(members)), lengths - 2] = False
        targets = torch.cat([tokens[row, 1 : n - 1] for row, n in enumerate(lengths)])
        log_probabilities, correct = _score(model, tokens, valid_mask, selected, targets)
        for member, part in zip(members, _split(log_probabilities, correct, lengths - 2), strict=True):
            results[member] = part
    return [result for result in results if result is not None]


def masked_log_probabilities(
    model: ProteinLM,
    sequences: Sequence[Residues],
    positions: Sequence[NDArray[np.int64]],
    *,
    tokens_per_batch: int,
) -> list[ResidueLogProbabilities]:
    """The residues at `positions` (0-based) of each sequence, all of them hidden by <mask> at once."""
    results: list[ResidueLogProbabilities | None] = [None] * len(sequences)
    for members in _groups(sequences, tokens_per_batch):
        tokens, valid_mask = pad([hide(sequences[i], positions[i]) for i in members])
        selected = torch.zeros_like(valid_mask)
        for row, i in enumerate(members):
            selected[row, positions[i] + 1] = True
        targets = np.concatenate([sequences[i][positions[i]] for i in members]).astype(np.int64)
        counts = torch.tensor([positions[i].size for i in members])
        log_probabilities, correct = _score(model, tokens, valid_mask, selected, torch.from_numpy(targets))
        for member, part in zip(members, _split(log_probabilities, correct, counts), strict=True):
            results[member] = part
    return [result for result in results if result is not None]


def evaluation_positions(residues: Residues) -> NDArray[np.int64]:
    """The residues of a sequence that evaluation hides: 15 %, a function of the sequence alone, so the same for every
    model and corpus.
    """
    seed = int.from_bytes(blake2b(residues.tobytes(), digest_size=8).digest(), "little")
    return choose_positions(residues.size, EVALUATION_MASK_FRACTION, np.random.default_rng(seed))


def evaluation_log_probabilities(
    model: ProteinLM, sequences: Sequence[Residues], *, tokens_per_batch: int
) -> list[ResidueLogProbabilities]:
    """What evaluation counts: every residue for a causal model, the hidden 15 % for a masked one."""
    if model.is_causal:
        return causal_log_probabilities(model, sequences, tokens_per_batch=tokens_per_batch)
    positions = [evaluation_positions(residues) for residues in sequences]
    return masked_log_probabilities(model, sequences, positions, tokens_per_batch=tokens_per_batch)


def _groups(sequences: Sequence[Residues], tokens_per_batch: int) -> list[NDArray[np.int64]]:
    lengths = np.array([residues.size + alphabet.NUM_SPECIAL_TOKENS for residues in sequences], dtype=np.int64)
    return group_by_length(lengths, tokens_per_batch)


@torch.inference_mode()
def _score(
    model: ProteinLM, tokens: Tensor, valid_mask: Tensor, selected: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability (k,) in float64 and correctness (k,) of `targets` at the True positions of `selected`."""
    device = model.device
    logits = model(tokens.to(device), valid_mask=valid_mask.to(device), selected=selected.to(device)).cpu()
    log_probabilities = torch.log_softmax(logits.double(), dim=-1)
    chosen = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    return chosen, logits.argmax(-1) == targets


def _split(log_probabilities: Tensor, correct: Tensor, counts: Tensor) -> Iterator[ResidueLogProbabilities]:
    sizes = counts.tolist()
    for part, hits in zip(log_probabilities.split(sizes), correct.split(sizes), strict=True):
        yield ResidueLogProbabilities(part.numpy(), hits.numpy())
