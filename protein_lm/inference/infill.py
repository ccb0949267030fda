"""Fills in marked residues of proteins with a masked model, in steps: some residues are drawn, the others predicted anew.

The order by confidence is that of Ghazvininejad et al. 2019 (Mask-Predict, arXiv 1904.09324) and Chang et al. 2022 (MaskGIT,
arXiv 2202.04200). A drawn residue stays.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.batches.packed_batches import fill, pack, tokens_of
from protein_lm.choices import FillingOrder
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.likelihood import each_hidden_in_turn
from protein_lm.inference.sampling import Sampling, draw, log_softmax, stream_of
from protein_lm.inference.templates import Template
from protein_lm.model.language_model import ProteinLM

SEQUENCES_AT_ONCE = 256
"""Sequences read ahead, which then share batches."""


@dataclass(frozen=True)
class Filled:
    """A template with all residues filled in."""

    sequence_id: str
    residues: NDArray[np.uint8]
    """(length,) token ids."""
    num_filled: int
    pseudo_log_likelihood: float
    """Log-probability of the residues that were filled in, each hidden in turn; nats."""

    @property
    def header(self) -> str:
        """Its header in FASTA."""
        perplexity = np.exp(-self.pseudo_log_likelihood / self.num_filled)
        return (
            f"{self.sequence_id} filled={self.num_filled} pseudo_log_likelihood={self.pseudo_log_likelihood:.3f} "
            f"pseudo_perplexity={perplexity:.3f}"
        )


@dataclass
class _Filling:
    """A template that is being filled in."""

    sequence_id: str
    residues: NDArray[np.uint8]
    positions: NDArray[np.int64]
    """(K,) indices of all marked residues."""
    random: np.random.Generator

    @property
    def open(self) -> NDArray[np.int64]:
        """(k,) indices that are still to be filled in."""
        return self.positions[self.residues[self.positions] == alphabet.MASK]


@torch.inference_mode()
def infill(
    model: ProteinLM,
    templates: Iterable[Template],
    *,
    number: int = 1,
    num_steps: int | None = None,
    order: FillingOrder = FillingOrder.CONFIDENT,
    sampling: Sampling | None = None,
    seed: int = 0,
    tokens_per_batch: int = 8192,
) -> Iterator[Filled]:
    """Fill in the marked residues of each template, `number` times; other residues never change.

    Args:
        model: a masked model.
        templates: the proteins.
        number: sequences per template. With more than one, `_1`, `_2`, ... follow its identifier.
        num_steps: passes over a sequence, in each of which about as many residues are drawn. None, or more than there are
            marked residues: one residue per pass.
        order: which residues are drawn first, the most confident ones or any.
        sampling: how residues are drawn. The penalty for repetition has no meaning here.
        seed: of the random numbers, which depend only on it and on the number of a sequence.
        tokens_per_batch: tokens computed at once.

    Raises:
        ConfigError: a causal model, or no steps.
        InputError: a template is longer than the model's window.
        NumericalError: the model gives NaN or infinity.
    """
    if model.is_causal:
        raise ConfigError(
            "a causal model does not see what follows a residue to fill in; use a masked model, or let this one continue a "
            "beginning with protein-lm generate --prefix"
        )
    if num_steps is not None and num_steps < 1:
        raise ConfigError(f"{num_steps} steps fill in nothing; choose 1 or more")
    sampling = sampling or Sampling()
    fillings = _fillings(model, templates, number, seed)
    while chunk := list(islice(fillings, SEQUENCES_AT_ONCE)):
        for members in fill(tokens_of([filling.residues for filling in chunk]), tokens_per_batch):
            _fill([chunk[member] for member in members], model, num_steps, order, sampling)
        for filling in chunk:
            hidden = each_hidden_in_turn(model, filling.residues, filling.positions, tokens_per_batch=tokens_per_batch)
            total = float(hidden.sum())
            yield Filled(filling.sequence_id, filling.residues, filling.positions.size, total)


def _fillings(model: ProteinLM, templates: Iterable[Template], number: int, seed: int) -> Iterator[_Filling]:
    for index, template in enumerate(templates):
        if template.residues.size > model.max_residues:
            raise InputError(
                f"sequence {template.sequence_id} has {template.residues.size:,} residues; this model reads "
                f"{model.max_residues:,}; cut it around the residues to fill in, or use a model with a longer window"
            )
        for count in range(number):
            name = template.sequence_id if number == 1 else f"{template.sequence_id}_{count + 1}"
            random = stream_of(seed, index * number + count)
            yield _Filling(name, template.residues.copy(), template.positions, random)


def _fill(
    fillings: Sequence[_Filling],
    model: ProteinLM,
    num_steps: int | None,
    order: FillingOrder,
    sampling: Sampling,
) -> None:
    """Fill in sequences of one batch; complete ones leave it."""
    allowed, step = sampling.allowed(), 0
    while remaining := [filling for filling in fillings if filling.open.size]:
        tokens, packing = pack([filling.residues for filling in remaining])
        selected = tokens == alphabet.MASK
        logits = model(tokens.to(model.device), packing=packing, selected=selected.to(model.device))
        log_probabilities = log_softmax(logits.double().cpu().numpy())
        probabilities, start = sampling.distribution(log_probabilities, allowed), 0
        confidence = log_probabilities[:, allowed].max(1)
        for filling in remaining:
            indices = filling.open
            own = slice(start, start + indices.size)  # rows of this sequence in the logits
            start = own.stop
            steps = min(num_steps or filling.positions.size, filling.positions.size)
            num_drawn = -(-indices.size // (steps - step))
            drawn = draw(probabilities[own], filling.random.random(indices.size))
            ranks = confidence[own] if order is FillingOrder.CONFIDENT else filling.random.random(indices.size)
            first = np.argsort(-ranks, kind="stable")[:num_drawn]
            filling.residues[indices[first]] = drawn[first]
        step += 1
