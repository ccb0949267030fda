"""Tables of scored variants."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.choices import VariantStrategy
from protein_lm.data.records import SequenceRecord
from protein_lm.data.variants import LETTERS, VariantTable, all_substitutions, name_of
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.variants import MARGINALS, Scoring, variant_scores
from protein_lm.model.language_model import ProteinLM

SCORE, REASON = "score", "reason"
"""Columns that scoring adds: nats, and why a row has no score."""


def check_scorable(table: VariantTable, path: Path, strategy: VariantStrategy) -> None:
    """Refuse a table before the work.

    Raises:
        InputError: it has a column of its own with a name that scoring adds.
        ConfigError: it has insertions or deletions, and the strategy knows none.
    """
    for name in (SCORE, REASON):
        if name in table.frame:
            raise InputError(f"{path} has a column {name} already; rename or remove it")
    if strategy not in MARGINALS:
        return
    for row, variant in enumerate(table.variants, 1):
        if variant is not None and variant.rewritten:
            raise ConfigError(
                f"{path}, row {row} has insertions or deletions, which {strategy.value} cannot score; choose --strategy "
                f"{VariantStrategy.PSEUDO_PPL.value}, or use a causal model"
            )


def scored(model: ProteinLM, table: VariantTable, scoring: Scoring) -> pd.DataFrame:
    """The table with `score`, NaN where a row names no variant that the wild type can have, and `reason`, why it does not."""
    scores = np.full(len(table.variants), np.nan)
    known = [variant for variant in table.variants if variant is not None]
    has_variant = [variant is not None for variant in table.variants]
    scores[has_variant] = variant_scores(model, table.wild_type.tokens, known, scoring)
    return table.frame.assign(**{SCORE: scores, REASON: table.reasons})


def scan(
    model: ProteinLM, wild_type: SequenceRecord, scoring: Scoring, *, first_residue: int = 1
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """All 19 substitutions at each of the L residues: `mutant` and `score`, and the scores as a matrix (L, 20).

    The matrix's columns are `data.variants.LETTERS`; the wild type has 0, and residues that are none of the 20 have no
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
    for place, letter in enumerate(wild_type.sequence):
        if letter in columns:
            matrix[place, columns[letter]] = 0.0
    for name, variant, value in zip(names, variants, scores.tolist(), strict=True):
        matrix[variant.sites[0], columns[name[-1]]] = value
    return pd.DataFrame({"mutant": names, SCORE: scores}), matrix
