"""How much a model prefers variants of a protein to its wild type.

The marginals and the pseudo-log-likelihood are those of Meier et al. 2021, section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.choices import Precision, VariantStrategy
from protein_lm.data.variants import Residues, Variant
from protein_lm.errors import ConfigError
from protein_lm.inference.likelihood import (
    continued_log_probabilities,
    each_hidden_in_turn,
    site_log_probabilities,
)
from protein_lm.inference.memory import reuse_freed_memory
from protein_lm.model.language_model import DecodingState, ProteinLM
from protein_lm.precision import choose

MARGINALS = (VariantStrategy.MASKED_MARGINALS, VariantStrategy.WT_MARGINALS)
"""Strategies that compare residues at one site, and so know no insertions and deletions."""
MOST_COPIES = 32
"""Copies of a state that are held at once."""


@dataclass(frozen=True)
class Scoring:
    """How variants are scored."""

    strategy: VariantStrategy
    tokens_per_batch: int = 2048
    """Tokens computed at once."""
    precision: Precision = Precision.FLOAT32
    """Of matrix products."""


def choose_strategy(model: ProteinLM, wanted: VariantStrategy | None) -> VariantStrategy:
    """The strategy that is wanted, or the model's own: masked marginals, log-likelihood for causal models.

    Raises:
        ConfigError: it has no meaning for the model.
    """
    own = VariantStrategy.LOG_LIKELIHOOD if model.is_causal else VariantStrategy.MASKED_MARGINALS
    strategy = wanted or own
    if model.is_causal != (strategy is VariantStrategy.LOG_LIKELIHOOD):
        others = (
            [own]
            if model.is_causal
            else [each for each in VariantStrategy if each is not VariantStrategy.LOG_LIKELIHOOD]
        )
        raise ConfigError(
            f"--strategy {strategy.value} has no meaning for a {model.config.objective.value} model; choose "
            f"{' or '.join(each.value for each in others)}"
        )
    return strategy


def variant_scores(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], scoring: Scoring
) -> NDArray[np.float64]:
    """The score (N,) of each variant in nats, 0 for the wild type; equal variants are computed once.

    Raises:
        ValueError: a marginal of a variant with insertions or deletions.
        NumericalError: the model gives no number.
    """
    if scoring.strategy in MARGINALS and any(variant.rewritten for variant in variants):
        raise ValueError(f"{scoring.strategy.value} know no insertions and deletions")
    reuse_freed_memory()
    different = [variant for variant in dict.fromkeys(variants) if not variant.is_wild_type]
    device = model.device.type
    with choose(scoring.precision, device).context(device), torch.inference_mode():
        scorer = _SCORERS[scoring.strategy]
        found = scorer(model, wild_type, different, scoring.tokens_per_batch) if different else []
        scores = dict(zip(different, found, strict=True))
    return np.array([scores.get(variant, 0.0) for variant in variants], dtype=np.float64)


def _masked_marginals(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """Variants of the same sites share one pass: <mask> stands at all of them."""
    groups = list(dict.fromkeys(variant.sites for variant in variants))
    arrays = [np.array(sites) for sites in groups]
    passes = site_log_probabilities(model, wild_type, arrays, are_hidden=True, tokens_per_batch=tokens_per_batch)
    rows = dict(zip(groups, passes, strict=True))
    return [_sum_of_ratios(variant, wild_type, rows[variant.sites]) for variant in variants]


def _wildtype_marginals(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """One pass over the wild type, whatever its length."""
    everywhere = [np.arange(wild_type.size)]
    (rows,) = site_log_probabilities(model, wild_type, everywhere, are_hidden=False, tokens_per_batch=tokens_per_batch)
    return [_sum_of_ratios(variant, wild_type, rows[list(variant.sites)]) for variant in variants]


def _sum_of_ratios(variant: Variant, wild_type: Residues, rows: NDArray[np.float64]) -> float:
    """Σ log p(mutant) - log p(wild type), with log-probabilities (k, V) at the k sites."""
    return float(
        sum(row[token] - row[wild_type[place]] for row, (place, token) in zip(rows, variant.substitutions, strict=True))
    )


def _pseudo_log_likelihood_ratios(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    proteins = [wild_type, *(variant.residues(wild_type) for variant in variants)]
    scores = (each_hidden_in_turn(model, each, tokens_per_batch=tokens_per_batch) for each in proteins)
    own, *others = (float(values.sum()) for values in scores)
    return [other - own for other in others]


def _log_likelihood_ratios(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """What stands before the first difference is read once for all variants: each goes on from a copy of that state."""
    tokens = torch.tensor([[alphabet.CLS, *wild_type.tolist()]])
    rows = continued_log_probabilities(model, tokens[:, :-1], model.new_state(), tokens_at_once=tokens_per_batch)[0]
    own = rows[np.arange(wild_type.size), wild_type]
    own_from = np.append(own[::-1].cumsum()[::-1], 0.0)
    groups: dict[tuple[int, int], list[Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.first_place(wild_type), len(variant.rewritten)), []).append(variant)
    scores: dict[Variant, float] = {}
    state, num_read, next_row = model.new_state(), 0, own
    for (place, length), members in sorted(groups.items()):
        if num_read <= place:
            part = tokens[:, num_read : place + 1]
            next_row = continued_log_probabilities(model, part, state, tokens_at_once=tokens_per_batch)[0, -1]
            num_read = place + 1
        num_copies = min(MOST_COPIES, max(1, tokens_per_batch // (length or wild_type.size)))
        for start in range(0, len(members), num_copies):
            chosen = members[start : start + num_copies]
            endings = np.stack([variant.residues(wild_type)[place:] for variant in chosen])
            likelihoods = _log_likelihoods_of_endings(model, endings, state, next_row, tokens_per_batch)
            scores |= zip(chosen, (likelihoods - own_from[place]).tolist(), strict=True)
    return [scores[variant] for variant in variants]


def _log_likelihoods_of_endings(
    model: ProteinLM, endings: Residues, state: DecodingState, next_row: NDArray[np.float64], tokens_per_batch: int
) -> NDArray[np.float64]:
    """Log-likelihoods (B,) of endings (B, S) of a protein whose beginning `state` has read.

    Args:
        model: a causal model.
        endings: token ids.
        state: stays as it is.
        next_row: (V,) log-probabilities of the first residue of an ending.
        tokens_per_batch: tokens computed at once.
    """
    if not endings.shape[1]:
        return np.zeros(len(endings))
    firsts = next_row[endings[:, 0]]
    if endings.shape[1] == 1:
        return firsts
    tokens = torch.from_numpy(endings[:, :-1].astype(np.int64))
    rows = continued_log_probabilities(model, tokens, state.repeated(len(endings)), tokens_at_once=tokens_per_batch)
    return firsts + np.take_along_axis(rows, endings[:, 1:, None].astype(np.int64), axis=2).sum((1, 2))


_Scorer = Callable[[ProteinLM, Residues, Sequence[Variant], int], Sequence[float]]
_SCORERS: Mapping[VariantStrategy, _Scorer] = {
    VariantStrategy.MASKED_MARGINALS: _masked_marginals,
    VariantStrategy.WT_MARGINALS: _wildtype_marginals,
    VariantStrategy.PSEUDO_PPL: _pseudo_log_likelihood_ratios,
    VariantStrategy.LOG_LIKELIHOOD: _log_likelihood_ratios,
}
