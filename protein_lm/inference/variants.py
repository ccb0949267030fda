"""Scores of variants: how much a model prefers them to the wild type.

Marginals and pseudo-log-likelihood are those of Meier et al. 2021, section 3. If a protein is over the model's window, a
window around the changes is read. For marginals this is a part of <cls> r₁ … rₙ <eos>, as ProteinGym takes for ESM. For
likelihoods it is a stretch of residues between <cls> and <eos>.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.choices import Precision, VariantLongPolicy, VariantStrategy
from protein_lm.errors import ConfigError
from protein_lm.inference.likelihood import (
    continued_log_probabilities,
    each_hidden_in_turn,
    site_log_probabilities,
    window_start,
)
from protein_lm.io.variants.variant_table import Residues, Variant
from protein_lm.model.language_model import DecodingState, ProteinLM
from protein_lm.model.precision import choose
from protein_lm.native.freed_memory import reuse_freed_memory

MARGINALS = (VariantStrategy.MASKED_MARGINALS, VariantStrategy.ADDITIVE_MARGINALS, VariantStrategy.WT_MARGINALS)
"""Strategies that compare residues site by site, and so cannot score insertions and deletions."""
_ONE_SITE_AT_A_TIME = (VariantStrategy.ADDITIVE_MARGINALS, VariantStrategy.WT_MARGINALS)
"""Strategies for which the sites of a variant may lie any distance apart."""
MOST_COPIES = 32
"""Most copies of a state held at once."""


@dataclass(frozen=True)
class Scoring:
    """Settings of scoring variants."""

    strategy: VariantStrategy
    tokens_per_batch: int = 2048
    """Tokens computed at once."""
    precision: Precision = Precision.FLOAT32
    """Precision of matrix products."""
    long_sequences: VariantLongPolicy = VariantLongPolicy.WINDOW
    """What happens to variants over the model's window; `analysis.variants.scorable` prepares tables for it."""


def choose_strategy(model: ProteinLM, wanted: VariantStrategy | None) -> VariantStrategy:
    """The strategy that is wanted, or the default: masked marginals, and log-likelihood for causal models.

    Raises:
        ConfigError: the strategy has no meaning for the model.
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


class VariantScores(NamedTuple):
    """Scores of N variants, 0 for the wild type."""

    total: NDArray[np.float64]
    """(N,) log-likelihood of the variant minus that of the wild type, or what the strategy has instead; nats."""
    per_residue: NDArray[np.float64]
    """(N,) mean log-likelihood per residue of the variant minus that of the wild type; NaN for marginals; nats."""


def variant_scores(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], scoring: Scoring
) -> NDArray[np.float64]:
    """`VariantScores.total` of each variant."""
    return all_variant_scores(model, wild_type, variants, scoring).total


def all_variant_scores(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], scoring: Scoring
) -> VariantScores:
    """Score each variant; equal variants are computed once.

    Compare variants with insertions or deletions by `per_residue`, as ProteinGym does: sums over proteins of different
    lengths cannot be compared.

    Raises:
        ValueError: a marginal for a variant with insertions or deletions, or a variant with a `fault`.
        NumericalError: the model gives NaN or infinity.
    """
    if scoring.strategy in MARGINALS and any(variant.rewritten for variant in variants):
        raise ValueError(f"{scoring.strategy.value} know no insertions and deletions")
    reuse_freed_memory()
    different = [variant for variant in dict.fromkeys(variants) if not variant.is_wild_type]
    for variant in different:
        if reason := fault(variant, wild_type, scoring.strategy, longest=model.max_residues):
            raise ValueError(reason)
    found: Mapping[Variant, tuple[float, float]] = {}
    device = model.device.type
    with choose(scoring.precision, device).context(device), torch.inference_mode():
        if different and scoring.strategy in MARGINALS:
            marginals = _MARGINAL_SCORERS[scoring.strategy](model, wild_type, different, scoring.tokens_per_batch)
            found = {variant: (total, np.nan) for variant, total in zip(different, marginals, strict=True)}
        elif different:
            found = _by_likelihood(model, wild_type, different, scoring)
    scores = np.array([found.get(variant, (0.0, 0.0)) for variant in variants], dtype=np.float64).reshape(-1, 2)
    return VariantScores(scores[:, 0], scores[:, 1])


def fault(variant: Variant, wild_type: Residues, strategy: VariantStrategy, *, longest: int) -> str:
    """The reason why a model that reads `longest` residues cannot score a variant; empty if it can."""
    if is_within(variant, wild_type, longest) or strategy in _ONE_SITE_AT_A_TIME:
        return ""
    first, *ends = variant.stretch(wild_type)
    if (span := max(ends) - first) < longest:
        return ""
    causal = strategy is VariantStrategy.LOG_LIKELIHOOD
    advice = "" if causal or variant.rewritten else f"; choose --strategy {VariantStrategy.ADDITIVE_MARGINALS.value}"
    return f"what changes spans {span:,} residues, for which a window of {longest:,} is too short{advice}"


def is_within(variant: Variant, wild_type: Residues, longest: int) -> bool:
    """Whether a variant and its wild type both fit a model that reads `longest` residues."""
    return max(wild_type.size, len(variant.rewritten)) <= longest


def _masked_marginals(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """One pass for each set of sites, all of which are hidden by <mask>."""
    groups = list(dict.fromkeys(variant.sites for variant in variants))
    arrays = [np.array(sites) for sites in groups]
    rows = dict(zip(groups, _read(model, wild_type, arrays, tokens_per_batch, are_hidden=True), strict=True))
    return [_sum_of_ratios(variant, wild_type, rows[variant.sites]) for variant in variants]


def _additive_marginals(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """One pass for each site of any variant, which alone is hidden by <mask>."""
    sites = sorted({site for variant in variants for site in variant.sites})
    passes = _read(model, wild_type, [np.array([site]) for site in sites], tokens_per_batch, are_hidden=True)
    rows = dict(zip(sites, (row[0] for row in passes), strict=True))
    return [_sum_of_ratios(variant, wild_type, [rows[site] for site in variant.sites]) for variant in variants]


def _wildtype_marginals(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> list[float]:
    """One pass over the wild type, or over each of the windows around the sites."""
    window = model.config.max_length
    length = wild_type.size + alphabet.NUM_SPECIAL_TOKENS
    groups: dict[int, list[int]] = {}  # sites by the start of their window
    for site in sorted({site for variant in variants for site in variant.sites}):
        groups.setdefault(window_start(site + 1, site + 1, length=length, longest=window), []).append(site)
    arrays = [np.array(sites) for sites in groups.values()]
    passes = _read(model, wild_type, arrays, tokens_per_batch, are_hidden=False)
    rows = dict(zip(np.concatenate(arrays).tolist(), (row for each in passes for row in each), strict=True))
    return [_sum_of_ratios(variant, wild_type, [rows[site] for site in variant.sites]) for variant in variants]


def _read(
    model: ProteinLM,
    wild_type: Residues,
    sites: Sequence[NDArray[np.int64]],
    tokens_per_batch: int,
    *,
    are_hidden: bool,
) -> Iterator[NDArray[np.float64]]:
    return site_log_probabilities(
        model,
        wild_type,
        sites,
        are_hidden=are_hidden,
        tokens_per_batch=tokens_per_batch,
        window=model.config.max_length,
    )


def _sum_of_ratios(
    variant: Variant, wild_type: Residues, rows: NDArray[np.float64] | Sequence[NDArray[np.float64]]
) -> float:
    """Σ log p(mutant) - log p(wild type), from log-probabilities (k, V) at the k sites."""
    return float(
        sum(row[token] - row[wild_type[site]] for row, (site, token) in zip(rows, variant.substitutions, strict=True))
    )


def _by_likelihood(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], scoring: Scoring
) -> dict[Variant, tuple[float, float]]:
    """Total and mean per residue of each variant, read whole or in windows; variants of one window share passes."""
    groups: dict[tuple[int, int], dict[Variant, Variant]] = {}
    for variant in variants:
        start, end, part = cut_to_window(variant, wild_type, model.max_residues)
        groups.setdefault((start, end), {})[variant] = part
    scores = {}
    for (start, end), members in groups.items():
        window, parts = wild_type[start:end], list(members.values())
        own, ratios = _LIKELIHOOD_SCORERS[scoring.strategy](model, window, parts, scoring.tokens_per_batch)
        for variant, part, ratio in zip(members, parts, ratios, strict=True):
            length = len(part.rewritten) or window.size
            scores[variant] = ratio, ratio / length + own * (1 / length - 1 / window.size)
    return scores


def cut_to_window(variant: Variant, wild_type: Residues, longest: int) -> tuple[int, int, Variant]:
    """Cut a variant and its wild type to a window: start and end in the wild type, and the variant of that stretch.

    The same residues remain before and after the changes, as many as fit in both; all of them if possible.
    """
    if is_within(variant, wild_type, longest):
        return 0, wild_type.size, variant
    gained = len(variant.rewritten) - wild_type.size if variant.rewritten else 0
    size = min(wild_type.size, longest - max(gained, 0))
    first, end, _ = variant.stretch(wild_type)
    start = window_start(first, max(first, end - 1), length=wild_type.size, longest=size)
    if not variant.rewritten:
        moved = tuple((site - start, token) for site, token in variant.substitutions)
        return start, start + size, Variant(moved)
    return start, start + size, Variant(rewritten=variant.rewritten[start : start + size + gained])


def _pseudo_log_likelihood_ratios(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> tuple[float, list[float]]:
    proteins = [wild_type, *(variant.residues(wild_type) for variant in variants)]
    scores = (each_hidden_in_turn(model, each, tokens_per_batch=tokens_per_batch) for each in proteins)
    own, *others = (float(values.sum()) for values in scores)
    return own, [other - own for other in others]


def _log_likelihood_ratios(
    model: ProteinLM, wild_type: Residues, variants: Sequence[Variant], tokens_per_batch: int
) -> tuple[float, list[float]]:
    """Read residues before the first difference once for all variants, each of which continues a copy of that state."""
    tokens = torch.tensor([[alphabet.CLS, *wild_type.tolist()]])
    rows = continued_log_probabilities(model, tokens[:, :-1], model.new_state(), tokens_at_once=tokens_per_batch)[0]
    own = rows[np.arange(wild_type.size), wild_type]
    # Log-likelihood of the wild type's residues from each index on.
    own_from = np.append(own[::-1].cumsum()[::-1], 0.0)
    groups: dict[tuple[int, int], list[Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.first_difference(wild_type), len(variant.rewritten)), []).append(variant)
    scores: dict[Variant, float] = {}
    state, num_read, next_row = model.new_state(), 0, own
    for (first, length), members in sorted(groups.items()):
        if num_read <= first:
            part = tokens[:, num_read : first + 1]
            next_row = continued_log_probabilities(model, part, state, tokens_at_once=tokens_per_batch)[0, -1]
            num_read = first + 1
        num_copies = min(MOST_COPIES, max(1, tokens_per_batch // (length or wild_type.size)))
        for start in range(0, len(members), num_copies):
            chosen = members[start : start + num_copies]
            endings = np.stack([variant.residues(wild_type)[first:] for variant in chosen])
            likelihoods = _log_likelihoods_of_endings(model, endings, state, next_row, tokens_per_batch)
            scores |= zip(chosen, (likelihoods - own_from[first]).tolist(), strict=True)
    return float(own.sum()), [scores[variant] for variant in variants]


def _log_likelihoods_of_endings(
    model: ProteinLM, endings: Residues, state: DecodingState, next_row: NDArray[np.float64], tokens_per_batch: int
) -> NDArray[np.float64]:
    """Log-likelihoods (B,) of endings (B, S) of a protein, after the beginning that `state` has read.

    Args:
        model: a causal model.
        endings: token ids.
        state: is not changed.
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


_MARGINAL_SCORERS: Mapping[VariantStrategy, Callable[[ProteinLM, Residues, Sequence[Variant], int], list[float]]] = {
    VariantStrategy.MASKED_MARGINALS: _masked_marginals,
    VariantStrategy.ADDITIVE_MARGINALS: _additive_marginals,
    VariantStrategy.WT_MARGINALS: _wildtype_marginals,
}
_LIKELIHOOD_SCORERS: Mapping[
    VariantStrategy, Callable[[ProteinLM, Residues, Sequence[Variant], int], tuple[float, list[float]]]
] = {
    VariantStrategy.PSEUDO_PPL: _pseudo_log_likelihood_ratios,
    VariantStrategy.LOG_LIKELIHOOD: _log_likelihood_ratios,
}
"""The wild type's log-likelihood, and for each variant how much higher its own is."""
