"""What the verbs leave on disk: tables, matrices and figures, together in one place and whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from protein_lm.analysis.assays import aggregate, agreement_with
from protein_lm.analysis.generated import compare, composition, reference
from protein_lm.analysis.variants import SCORE, scored
from protein_lm.corpus.clusters import nearest_in_training, shares_of_relatives
from protein_lm.corpus.corpus import Corpus
from protein_lm.files.output import new_directory, new_file, safe_name
from protein_lm.inference.variants import Scoring
from protein_lm.io.proteins import without_repeats
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.assays import Assay
from protein_lm.io.variants.measurements import read_measurements
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.curves import fine_tuning_curve, learning_curve
from protein_lm.plots.generated import generated_and_real
from protein_lm.plots.kernel_error import kernel_errors
from protein_lm.plots.saving import save_figure
from protein_lm.training.run_log import read_metrics


def write_learning_curve(run: Path) -> Path:
    """Draw a run's metrics.jsonl into its folder; the figure's path."""
    path = run / "learning_curve.png"
    save_figure(learning_curve(pd.DataFrame(read_metrics(run))), path, replace=True)
    return path


def write_fine_tuning(run: Path, evaluation: pd.DataFrame) -> None:
    """Put the evaluation of a fine-tuning run and its learning curve into its folder."""
    with new_file(run / "evaluation.csv", replace=True) as partial:
        evaluation.to_csv(partial, index=False)
    figure = fine_tuning_curve(pd.DataFrame(read_metrics(run)))
    save_figure(figure, run / "learning_curve.png", replace=True)


def write_assays(model: ProteinLM, assays: Sequence[Assay], output: Path, scoring: Scoring) -> pd.DataFrame:
    """For each assay a table NAME.csv with scores; and `assays.csv`, how well they agree with what was measured (returned).

    Args:
        model: the model.
        assays: with tables that are `scorable`.
        output: a folder.
        scoring: how.

    Raises:
        InputError: as `read_measurements`.
        OutputError: `output` exists or cannot be written.
    """
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


def write_kernel_error(table: pd.DataFrame, output: Path, *, figure_format: str = ".png") -> None:
    """The table of `kernel_error` and a figure for the error of the matrix and of the output.

    Raises:
        OutputError: `output` exists or cannot be written.
    """
    with new_directory(output) as folder:
        table.to_csv(folder / "kernel_error.csv", index=False)
        for error in ("matrix_error", "output_error"):
            save_figure(kernel_errors(table, error=error), folder / f"{error}{figure_format}")


def write_generated_and_real(
    records: Sequence[SequenceRecord],
    store: Corpus,
    output: Path,
    *,
    max_sequences: int,
    seed: int,
    with_relatives: bool,
    figure_format: str = ".png",
) -> pd.DataFrame:
    """Generated proteins beside the training split of a corpus: comparison.csv, composition.csv, the figure, and with
    relatives nearest.csv; the first of these tables.

    Raises:
        InputError: an identifier comes twice, the corpus has too few training sequences, or MMseqs2 failed.
        OutputError: `output` exists or cannot be written.
    """
    letters = {record.sequence_id: record.sequence for record in without_repeats(records)}
    generated = [record.tokens for record in records]
    real = reference(store, max_sequences=max_sequences, seed=seed)
    table, shares = compare(generated, real, seed=seed), composition(generated, real.all)
    lengths = {name: np.array([r.size for r in rows]) for name, rows in (("generated", generated), ("real", real.all))}
    nearest = identities = None
    if with_relatives:
        nearest = nearest_in_training(store, letters)
        found = dict(zip(nearest["sequence_id"], nearest["identity"], strict=True))
        identities = np.array([found.get(name, 0.0) for name in letters])
        relatives = shares_of_relatives(identities)
        names = [f"relatives_{name}" for name in relatives]
        table = pd.concat([table, pd.DataFrame({"measure": names, "generated": list(relatives.values())})])
    with new_directory(output) as folder:
        table.to_csv(folder / "comparison.csv", index=False)
        shares.to_csv(folder / "composition.csv", index=False)
        if nearest is not None:
            nearest.to_csv(folder / "nearest.csv", index=False)
        title = (
            f"{len(generated):,} generated proteins beside {len(real.all):,} of the split train of {store.path.name}"
        )
        figure = generated_and_real(table, shares, lengths, identities, title=title)
        save_figure(figure, folder / f"comparison{figure_format}")
    return table
