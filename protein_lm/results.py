"""What the verbs leave on disk: tables, matrices and figures, together in one place and whole or not at all."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from protein_lm import plots
from protein_lm.analysis.assays import aggregate, agreement_with, read_measurements
from protein_lm.analysis.similarity import Agreement, PairAttention, agreement, blosum62, normalized
from protein_lm.analysis.variants import SCORE, check_scorable, scored
from protein_lm.data.assays import Assay
from protein_lm.inference.variants import Scoring
from protein_lm.model.language_model import ProteinLM
from protein_lm.output import new_directory, new_file, safe_name
from protein_lm.training.run_log import read_metrics


def write_learning_curve(run: Path) -> Path:
    """Draw a run's metrics.jsonl into its folder; the figure's path."""
    path = run / "learning_curve.png"
    plots.save_figure(plots.learning_curve(pd.DataFrame(read_metrics(run))), path, replace=True)
    return path


def write_fine_tuning(run: Path, evaluation: pd.DataFrame) -> None:
    """Put the evaluation of a fine-tuning run and its learning curve into its folder."""
    with new_file(run / "evaluation.csv", replace=True) as partial:
        evaluation.to_csv(partial, index=False)
    figure = plots.fine_tuning_curve(pd.DataFrame(read_metrics(run)))
    plots.save_figure(figure, run / "learning_curve.png", replace=True)


def write_similarity(pairs: PairAttention, output: Path, *, figure_format: str = ".png") -> dict[str, Agreement]:
    """Tables and heatmap of the amino-acid similarity; how each measure agrees with BLOSUM62.

    Raises:
        OutputError: `output` exists or cannot be written.
    """
    reference = blosum62()
    tables = {"similarity": pairs.similarity(), "enrichment": pairs.enrichment()}
    agreements = {name: agreement(table, reference) for name, table in tables.items()}
    first = agreements["similarity"]
    caption = (
        f"{pairs.num_sequences:,} proteins, {pairs.num_residues:,} residues; correlation over heads against BLOSUM62: "
        f"Pearson {first.pearson:.2f} (p {first.pearson_p:.4f}), Spearman {first.spearman:.2f} (p {first.spearman_p:.4f})"
    )
    with new_directory(output) as folder:
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index_label="amino_acid")
        np.savez(folder / "pair_attention.npz", sums=pairs.sums)
        summary = {
            "num_sequences": pairs.num_sequences,
            "num_residues": pairs.num_residues,
            "agreement_with_blosum62": {name: asdict(value) for name, value in agreements.items()},
        }
        (folder / "agreement.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        figure = plots.similarity_heatmaps(
            tables["similarity"], tables["enrichment"], normalized(reference), caption=caption
        )
        plots.save_figure(figure, folder / f"similarity{figure_format}")
    return agreements


def write_assays(model: ProteinLM, assays: Sequence[Assay], output: Path, scoring: Scoring) -> pd.DataFrame:
    """For each assay a table NAME.csv with scores; and `assays.csv`, how well they agree with what was measured (returned).

    Raises:
        InputError: as `check_scorable` and `read_measurements`.
        ConfigError: as `check_scorable`.
        OutputError: `output` exists or cannot be written.
    """
    measured = []
    for assay in assays:
        check_scorable(assay.table, assay.path, scoring.strategy)
        measured.append(read_measurements(assay.table.frame, assay.path))
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


def write_kernel_error(table: pd.DataFrame, output: Path, *, figure_format: str = ".png") -> None:
    """The table of `kernel_error` and a figure for the error of the matrix and of the output.

    Raises:
        OutputError: `output` exists or cannot be written.
    """
    with new_directory(output) as folder:
        table.to_csv(folder / "kernel_error.csv", index=False)
        for error in ("matrix_error", "output_error"):
            plots.save_figure(plots.kernel_errors(table, error=error), folder / f"{error}{figure_format}")
