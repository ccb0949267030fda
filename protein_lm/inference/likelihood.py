"""Log-probabilities of residues. Only this module knows at which token a residue is predicted.

A sequence of n residues is <cls> r₁ … rₙ <eos>. A causal model predicts rᵢ at token i - 1 (r₁ at <cls>), a masked model at
token i. Special tokens are never counted. Logits run over the whole alphabet.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.batches.masking import choose_positions, hide
from protein_lm.batches.packed_batches import fill, pack, tokens_of
from protein_lm.errors import NumericalError
from protein_lm.model.diagnosis import first_non_finite
from protein_lm.model.language_model import DecodingState, ProteinLM

Residues = NDArray[np.uint8]
EVALUATION_MASK_FRACTION = 0.15


class ResidueLogProbabilities(NamedTuple):
    """Log-probabilities of the scored residues of one sequence."""

    log_probabilities: NDArray[np.float64]
    """(k,) natural logarithm of each scored residue's probability."""
    correct: NDArray[np.bool_]
    """(k,) whether it was the most probable token."""


def causal_log_probabilities(
    model: ProteinLM, sequences: Sequence[Residues], *, tokens_per_batch: int
) -> list[ResidueLogProbabilities]:
    """Predict every residue from those before it, for each of `sequences`, in order.

    A sequence of more than `tokens_per_batch` tokens is read in parts. With linear attention memory does not grow with its
    length.
    """
    results = []
    for members in fill(tokens_of(sequences), tokens_per_batch):
        batch = [sequences[i] for i in members]
        tokens, packing = pack(batch)
        if tokens.shape[1] > tokens_per_batch:  # one long sequence
            results.extend(_split(*_stream(model, tokens, tokens_per_batch), [len(batch[0])]))
            continue
        # Neither <eos> nor the last residue predicts a residue.
        selected = torch.ones_like(tokens, dtype=torch.bool)
        selected[0, packing.boundaries[1:] - 1] = False
        selected[0, packing.boundaries[1:] - 2] = False
        targets = torch.from_numpy(np.concatenate(batch).astype(np.int64))
        results.extend(
            _split(*_score(model, tokens, packing, selected, targets), [len(residues) for residues in batch])
        )
    return results


def masked_log_probabilities(
    model: ProteinLM,
    sequences: Sequence[Residues],
    positions: Sequence[NDArray[np.int64]],
    *,
    tokens_per_batch: int,
) -> list[ResidueLogProbabilities]:
    """Predict the residues at `positions` (from 0, ascending) of each sequence, with all of them hidden by <mask> at once."""
    results = []
    for members in fill(tokens_of(sequences), tokens_per_batch):
        tokens, packing = pack([hide(sequences[i], positions[i]) for i in members])
        selected = torch.zeros_like(tokens, dtype=torch.bool)
        for start, i in zip(packing.boundaries, members, strict=False):
            selected[0, start + 1 + positions[i]] = True
        targets = np.concatenate([sequences[i][positions[i]] for i in members]).astype(np.int64)
        scored = _score(model, tokens, packing, selected, torch.from_numpy(targets))
        results.extend(_split(*scored, [positions[i].size for i in members]))
    return results


def one_pass_log_probabilities(
    model: ProteinLM, sequences: Sequence[Residues], *, tokens_per_batch: int
) -> list[ResidueLogProbabilities]:
    """Predict every residue with none hidden, for each of `sequences`, in order."""
    results = []
    for members in fill(tokens_of(sequences), tokens_per_batch):
        batch = [sequences[i] for i in members]
        tokens, packing = pack(batch)
        selected = torch.ones_like(tokens, dtype=torch.bool)
        selected[0, packing.boundaries[:-1]] = False
        selected[0, packing.boundaries[1:] - 1] = False
        scored = _score(model, tokens, packing, selected, tokens[selected])
        results.extend(_split(*scored, [len(residues) for residues in batch]))
    return results


def window_start(first: int, last: int, *, length: int, longest: int) -> int:
    """Start of a window of `longest` with the stretch from `first` to `last` in its middle, or as near as the ends allow.

    This is `get_optimal_window` of ProteinGym, for a stretch instead of one position.

    >>> [window_start(index, index, length=100, longest=10) for index in (4, 5, 6, 50, 94, 95, 99)]
    [0, 0, 1, 45, 89, 90, 90]
    """
    return max(0, min((first + last) // 2 - longest // 2, length - longest))


@torch.inference_mode()
def site_log_probabilities(
    model: ProteinLM,
    residues: Residues,
    sites: Sequence[NDArray[np.int64]],
    *,
    are_hidden: bool,
    tokens_per_batch: int,
    window: int | None = None,
) -> Iterator[NDArray[np.float64]]:
    """For each group of `sites` (k,), log-probabilities (k, V) of all tokens there, by a masked model.

    Each group, from 0 and ascending, has its own copy of the sequence, in which all of its sites are hidden by <mask>, or
    nothing is. Copies have one length, so they are rows of batches without padding. If the sequence has more tokens than
    `window`, <cls> and <eos> included, a copy has `window` tokens around the middle of its sites.
    """
    whole = torch.tensor([alphabet.CLS, *residues.tolist(), alphabet.EOS])  # (L + 2,)
    length = min(whole.numel(), window or whole.numel())
    pieces = whole.unfold(0, length, 1)  # every window, by its start
    num_rows = max(1, tokens_per_batch // length)
    for start in range(0, len(sites), num_rows):
        chosen = [1 + each for each in sites[start : start + num_rows]]  # token indices, <cls> is 0
        sizes = [each.size for each in chosen]
        begins = [window_start(each[0], each[-1], length=whole.numel(), longest=length) for each in chosen]
        tokens = pieces[begins]
        selected = torch.zeros_like(tokens, dtype=torch.bool)
        # Row of each site, and its index within that row's window.
        selected[np.repeat(np.arange(len(chosen)), sizes), np.concatenate(chosen) - np.repeat(begins, sizes)] = True
        if are_hidden:
            tokens[selected] = alphabet.MASK
        logits = model(tokens.to(model.device), selected=selected.to(model.device))
        yield from (part.numpy() for part in _log_softmax(model, logits, tokens).split(sizes))


def each_hidden_in_turn(
    model: ProteinLM, residues: Residues, positions: NDArray[np.int64] | None = None, *, tokens_per_batch: int
) -> NDArray[np.float64]:
    """Log-probability (k,) of each residue at `positions` (k,), with this residue alone hidden; None: all positions."""
    chosen = np.arange(residues.size) if positions is None else positions
    sites = list(chosen[:, None])
    hidden = site_log_probabilities(model, residues, sites, are_hidden=True, tokens_per_batch=tokens_per_batch)
    return np.array([row[0, residue] for row, residue in zip(hidden, residues[chosen].tolist(), strict=True)])


@torch.inference_mode()
def continued_log_probabilities(
    model: ProteinLM, tokens: Tensor, state: DecodingState, *, tokens_at_once: int
) -> NDArray[np.float64]:
    """Log-probabilities (B, S, V) of the token after each of the tokens (B, S), which a causal model reads after `state`.

    Tokens are read in parts. With linear attention memory does not grow with S.
    """
    parts = []
    for part in tokens.split(max(1, tokens_at_once // tokens.shape[0]), 1):
        logits = model.extend(part.to(model.device), state)
        parts.append(_log_softmax(model, logits.flatten(0, 1), part).view(logits.shape))
    return torch.cat(parts, dim=1).numpy()


def evaluation_positions(residues: Residues) -> NDArray[np.int64]:
    """Positions that evaluation hides: 15 %, chosen by the sequence alone, so the same for every model and corpus."""
    seed = int.from_bytes(blake2b(residues.tobytes(), digest_size=8).digest(), "little")
    return choose_positions(residues.size, EVALUATION_MASK_FRACTION, np.random.default_rng(seed))


def evaluation_log_probabilities(
    model: ProteinLM, sequences: Sequence[Residues], *, tokens_per_batch: int
) -> list[ResidueLogProbabilities]:
    """Log-probabilities for evaluation: of every residue for a causal model, of the hidden 15 % for a masked one."""
    if model.is_causal:
        return causal_log_probabilities(model, sequences, tokens_per_batch=tokens_per_batch)
    positions = [evaluation_positions(residues) for residues in sequences]
    return masked_log_probabilities(model, sequences, positions, tokens_per_batch=tokens_per_batch)


@torch.inference_mode()
def _score(
    model: ProteinLM, tokens: Tensor, packing: Packing, selected: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability (k,) in float64 and correctness (k,) of `targets` at the True positions of `selected`."""
    logits = model(tokens.to(model.device), packing=packing, selected=selected.to(model.device))
    return _compare(model, logits, targets, tokens, packing)


@torch.inference_mode()
def _stream(model: ProteinLM, tokens: Tensor, tokens_at_once: int) -> tuple[Tensor, Tensor]:
    """Do as `_score` for all residues of one sequence (1, L) and a causal model, in memory that does not grow with L."""
    state, parts = model.new_state(), []
    inputs, targets = tokens[:, :-2], tokens[0, 1:-1]
    for part, wanted in zip(inputs.split(tokens_at_once, 1), targets.split(tokens_at_once), strict=True):
        logits = model.extend(part.to(model.device), state)[0]
        parts.append(_compare(model, logits, wanted, part, None))
    log_probabilities, correct = zip(*parts, strict=True)
    return torch.cat(log_probabilities), torch.cat(correct)


def _compare(
    model: ProteinLM, logits: Tensor, targets: Tensor, tokens: Tensor, packing: Packing | None
) -> tuple[Tensor, Tensor]:
    """Log-probability (k,) and correctness (k,) of targets (k,), from logits (k, V) of a pass over `tokens`."""
    log_probabilities = _log_softmax(model, logits, tokens, packing)
    return log_probabilities.gather(1, targets[:, None]).squeeze(1), log_probabilities.argmax(-1) == targets


def _log_softmax(model: ProteinLM, logits: Tensor, tokens: Tensor, packing: Packing | None = None) -> Tensor:
    """Log-probabilities (k, V) in float64 of logits (k, V) of a pass over `tokens`.

    Raises:
        NumericalError: they are NaN or infinite.
    """
    log_probabilities = torch.log_softmax(logits.cpu().double(), dim=-1)
    if not log_probabilities.isfinite().all():
        where = first_non_finite(model, tokens.to(model.device), packing=packing)
        raise NumericalError(
            f"the model gives no number: {where} is NaN or infinite; its weights come from a run that diverged: use an "
            "earlier checkpoint"
        )
    return log_probabilities


def _split(log_probabilities: Tensor, correct: Tensor, counts: list[int]) -> Iterator[ResidueLogProbabilities]:
    for part, hits in zip(log_probabilities.split(counts), correct.split(counts), strict=True):
        yield ResidueLogProbabilities(part.numpy(), hits.numpy())
