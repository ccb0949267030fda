"""Files of `variants`: scores of all substitutions, of a table of variants, or of a folder of assays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from protein_lm.analysis.assays import aggregate, agreement_with
from protein_lm.analysis.variants import SCORE, num_in_windows, scan, scorable, scored
from protein_lm.choices import VariantLongPolicy
from protein_lm.files.output import new_directory, safe_name
from protein_lm.files.tables import write_table
from protein_lm.inference.variants import Scoring
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.assays import Assay, AssayFolder, read_assays, read_wild_type
from protein_lm.io.variants.measurements import MEASURED, read_measurements
from protein_lm.io.variants.variant_table import VariantTable, read_variants
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.saving import save_figure
from protein_lm.plots.variants import substitution_heatmap


class Scan(NamedTuple):
    """Result of `write_scan`."""

    wild_type: SequenceRecord
    num_scored: int
    """Number of substitutions."""


class ScoredTable(NamedTuple):
    """Result of `write_scores`."""

    table: VariantTable
    """The variants, with reasons for those without a score."""
    measures: dict[str, float] | None
    """Agreement with the measurements of the table, if it has any."""
    num_in_windows: int
    """Variants that the model did not read whole."""


class ScoredAssays(NamedTuple):
    """Result of `write_assays`."""

    summary: pd.DataFrame
    """Agreement with the measurements, as in assays.csv."""
    folder: AssayFolder
    """The assays, with reasons for variants without a score."""
    in_windows: list[str]
    """Names of assays with variants that the model did not read whole."""


def write_scan(
    model: ProteinLM, sequence: Path, output: str, figure: Path | None, scoring: Scoring, *, first_residue: int
) -> Scan:
    """Score all substitutions of a protein, into a table and a heatmap.

    Args:
        model: any model.
        sequence: file of the wild type.
        output: .csv, .tsv or .parquet; `-` is standard output.
        figure: file of the heatmap; None for none.
        scoring: how to score.
        first_residue: number of the first residue.

    Raises:
        InputError: as `read_wild_type` and `scan`.
        OutputError: an output exists or cannot be written.
    """
    wild_type = read_wild_type(sequence, longest=_longest(model, scoring))
    table, matrix = scan(model, wild_type, scoring, first_residue=first_residue)
    if figure is not None:
        title = f"{wild_type.sequence_id[:80]}: {scoring.strategy.value}"
        heatmap = substitution_heatmap(matrix, wild_type.sequence, title=title, first_residue=first_residue)
        save_figure(heatmap, figure)
    write_table(table, output)
    return Scan(wild_type, len(table))


def write_scores(
    model: ProteinLM, sequence: Path, mutants: Path, output: str, scoring: Scoring, *, first_residue: int
) -> ScoredTable:
    """Score the variants of a table, and compare with its measurements, if there are any.

    Args:
        model: any model.
        sequence: file of the wild type.
        mutants: table of variants.
        output: .csv, .tsv or .parquet; `-` is standard output.
        scoring: how to score.
        first_residue: number of the first residue.

    Raises:
        InputError: as `read_wild_type`, `read_variants`, `scorable` and `read_measurements`.
        ConfigError: as `scorable`.
        OutputError: the output exists or cannot be written.
    """
    wild_type = read_wild_type(sequence, longest=_longest(model, scoring))
    table = read_variants(mutants, wild_type, first_residue=first_residue)
    table = scorable(table, mutants, scoring, longest=model.max_residues)
    measurements = read_measurements(table.frame, mutants) if MEASURED in table.frame else None
    frame = scored(model, table, scoring)
    write_table(frame, output)
    measures = None if measurements is None else agreement_with(frame[SCORE].to_numpy(), measurements)
    return ScoredTable(table, measures, num_in_windows(table, longest=model.max_residues))


def write_assays(
    model: ProteinLM, wild_types: Path, mutants: Path, output: Path, scoring: Scoring, *, first_residue: int
) -> ScoredAssays:
    """Score a folder of assays: a table NAME.csv for each, and assays.csv with their agreement with the measurements.

    Args:
        model: any model.
        wild_types: ProteinGym's reference table, or a sequence file.
        mutants: the folder of assays.
        output: the folder to make.
        scoring: how to score.
        first_residue: number of the first residue of all wild types.

    Raises:
        InputError: as `read_assays`, `scorable` and `read_measurements`.
        ConfigError: as `scorable`.
        OutputError: `output` exists or cannot be written.
    """
    longest = model.max_residues
    folder = read_assays(mutants, wild_types, first_residue=first_residue, longest=_longest(model, scoring))
    tables = [scorable(assay.table, assay.path, scoring, longest=longest) for assay in folder.assays]
    assays = [replace(assay, table=table) for assay, table in zip(folder.assays, tables, strict=True)]
    summary = _score_assays(model, assays, output, scoring)
    in_windows = [assay.name for assay in assays if num_in_windows(assay.table, longest=longest)]
    return ScoredAssays(summary, replace(folder, assays=assays), in_windows)


def _score_assays(model: ProteinLM, assays: Sequence[Assay], output: Path, scoring: Scoring) -> pd.DataFrame:
    measured = [read_measurements(assay.table.frame, assay.path) for assay in assays]
    rows, taken = [], ["assays"]
    with new_directory(output) as folder:
        for assay, measurements in zip(assays, measured, strict=True):
            table = scored(model, assay.table, scoring)
            taken.append(safe_name(assay.name, taken=taken))
            table.to_csv(folder / f"{taken[-1]}.csv", index=False)
            scores = table[SCORE].to_numpy(dtype=np.float64)
            counts = {"num_variants": scores.size, "num_scored": int(np.isfinite(scores).sum())}
            rows.append({"assay": assay.name, **assay.groups, **counts, **agreement_with(scores, measurements)})
        summary = aggregate(rows)
        summary.to_csv(folder / "assays.csv", index=False)
    return summary


def _longest(model: ProteinLM, scoring: Scoring) -> int | None:
    """Return the residues of the longest wild type that is scored, None if windows have no limit."""
    return model.max_residues if scoring.long_sequences is VariantLongPolicy.DROP else None
