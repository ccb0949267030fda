"""Tables of scored variants, and scans of all substitutions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.choices import VariantLongPolicy, VariantStrategy
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.variants import MARGINALS, Scoring, all_variant_scores, fault, is_within, variant_scores
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.variant_table import LETTERS, VariantTable, all_substitutions, name_of
from protein_lm.model.language_model import ProteinLM

SCORE, TOTAL, REASON = "score", "total_score", "reason"
"""Columns that scoring adds: nats (per residue if a variant has another length), the sums, the reason for no score."""


def scorable(table: VariantTable, path: Path, scoring: Scoring, *, longest: int) -> VariantTable:
    """Check before the work what a model that reads `longest` residues can score; `reasons` explain the other rows.

    Raises:
        InputError: the table has a column with a name that scoring adds, or no row can be scored.
        ConfigError: it has insertions or deletions, which the strategy cannot score.
    """
    for name in (SCORE, *([TOTAL] if table.has_indels else []), REASON):
        if name in table.frame:
            raise InputError(f"{path} has a column {name} already; rename or remove it")
    if scoring.strategy in MARGINALS and table.has_indels:
        row = next(row for row, each in enumerate(table.variants, 1) if each is not None and each.rewritten)
        raise ConfigError(
            f"{path}, row {row} has insertions or deletions, which {scoring.strategy.value} cannot score; choose --strategy "
            f"{VariantStrategy.PSEUDO_PPL.value}, or use a causal model"
        )
    fitting = within_window(table, scoring, longest=longest)
    if not any(fitting.variants):
        raise InputError(f"{path}: no row can be scored; row 1: {fitting.reasons[0]}")
    return fitting


def within_window(table: VariantTable, scoring: Scoring, *, longest: int) -> VariantTable:
    """Remove variants that a model that reads `longest` residues cannot score; `reasons` say why."""
    variants, reasons = list(table.variants), list(table.reasons)
    for row, variant in enumerate(variants):
        if variant is None or variant.is_wild_type or is_within(variant, table.wild_type.tokens, longest):
            continue
        if scoring.long_sequences is VariantLongPolicy.DROP:
            reasons[row] = f"{len(variant.rewritten):,} residues; this model reads {longest:,}"
        else:
            reasons[row] = fault(variant, table.wild_type.tokens, scoring.strategy, longest=longest)
        if reasons[row]:
            variants[row] = None
    return replace(table, variants=variants, reasons=reasons)


def num_in_windows(table: VariantTable, *, longest: int) -> int:
    """Return the number of variants that a model that reads `longest` residues does not read whole."""
    return sum(
        not (each is None or each.is_wild_type or is_within(each, table.wild_type.tokens, longest))
        for each in table.variants
    )


def scored(model: ProteinLM, table: VariantTable, scoring: Scoring) -> pd.DataFrame:
    """Add `score` to the table, NaN if a row has no valid variant, and `reason`, which then says why.

    If a variant has another length than the wild type, all scores are per residue, and `total_score` has the sums.
    """
    known = [variant for variant in table.variants if variant is not None]
    has_variant = [variant is not None for variant in table.variants]
    found = all_variant_scores(model, table.wild_type.tokens, known, scoring)
    columns = {SCORE: found.per_residue, TOTAL: found.total} if table.has_indels else {SCORE: found.total}
    whole = {name: np.full(len(table.variants), np.nan) for name in columns}
    for name, values in columns.items():
        whole[name][has_variant] = values
    return table.frame.assign(**whole, **{REASON: table.reasons})


def scan(
    model: ProteinLM, wild_type: SequenceRecord, scoring: Scoring, *, first_residue: int = 1
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Score all 19 substitutions at each of the L residues: `mutant` and `score`, and the scores as a matrix (L, 20).

    The matrix's columns are in the order of `LETTERS`, and the wild type has 0. Residues that are none of the 20 have no
    scores (NaN) and no rows in the table.

    Raises:
        InputError: there is none of the 20 in the sequence.
    """
    variants = all_substitutions(wild_type.tokens)
    if not variants:
        raise InputError(
            f"sequence {wild_type.sequence_id} has none of the 20 amino acids; there is nothing to substitute"
        )
    scores = variant_scores(model, wild_type.tokens, variants, scoring)
    names = [name_of(variant, wild_type.tokens, first_residue=first_residue) for variant in variants]
    matrix = np.full((len(wild_type), len(LETTERS)), np.nan)
    columns = {letter: column for column, letter in enumerate(LETTERS)}
    for index, letter in enumerate(wild_type.sequence):
        if letter in columns:
            matrix[index, columns[letter]] = 0.0
    for name, variant, value in zip(names, variants, scores.tolist(), strict=True):
        matrix[variant.sites[0], columns[name[-1]]] = value
    return pd.DataFrame({"mutant": names, SCORE: scores}), matrix
