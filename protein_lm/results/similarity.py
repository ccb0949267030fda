"""Files of `similarity`: tables, sums and figures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from protein_lm.analysis.pair_attention_file import FileSums, PairReader, sum_over_file
from protein_lm.analysis.protein_sample import draw
from protein_lm.analysis.similarity import Measure, correlation_over_heads, enrichment, frame, kernel_similarity
from protein_lm.analysis.substitution import MATRIX, Resamples, agreement, normalized, substitution_matrix
from protein_lm.files.output import check_absent
from protein_lm.files.resume import unfinished_work
from protein_lm.inference.reading import Summary
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.saving import save_figure
from protein_lm.plots.similarity import agreement_intervals, clustered_similarity, similarity_heatmaps

SIMILARITY, ENRICHMENT, ARCS, KERNEL = "similarity", "enrichment", "arcs", "kernel"
TRAINED = "trained"


class Similarity(NamedTuple):
    """Result of `write_similarity`."""

    summary: Summary
    agreements: pd.DataFrame
    """A row for each model, measure and matrix, as in agreement.csv."""
    notes: list[str]
    """Remarks for the user, a line each."""


def write_similarity(
    model: ProteinLM,
    source: Path,
    output: Path,
    reader: PairReader,
    *,
    matrices: Sequence[str] = (MATRIX,),
    num_untrained: int = 0,
    resume: bool = False,
    figure_format: str = ".png",
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Similarity:
    """Write into a new folder how similar the amino acids are to a model, compared with substitution matrices.

    `similarity.csv`, `enrichment.csv`, with arcs `arcs.csv`, and for a linear first layer `kernel.csv` are 20 × 20.
    `agreement.csv` has a row for each model, measure and matrix: Pearson and Spearman with one-sided permutation p and 95 %
    interval over proteins. `pair_attention.npz` has the sums (layers, heads, 20, 20), `summary.json` the numbers of proteins
    and residues.

    Args:
        model: any model.
        source: any file that `readers` reads, or a prepared corpus.
        output: the folder.
        reader: the draw of proteins, and how they are read.
        matrices: names of Biopython's matrices; the first one is drawn.
        num_untrained: models of the same configuration with random weights that read the same proteins.
        resume: resume a stopped process for this output, if there is one.
        figure_format: ending of the figures.
        on_progress: called with the number of sequences read, and of all, if it is known.

    Raises:
        ConfigError: an unknown matrix, or a draw from standard input.
        InputError: as `draw` and `sum_over_file`.
        OutputError: as `unfinished_work`.
    """
    check_absent(output)
    references = {name: substitution_matrix(name) for name in dict.fromkeys(matrices)}
    drawn = draw(source, reader.num_sequences, longest=model.max_residues, seed=reader.seed)
    models = {TRAINED: model} | {f"untrained-{seed}": untrained(model, seed) for seed in range(num_untrained)}
    with unfinished_work(output, reader.settings(list(models.values())), resume=resume) as work:
        found = sum_over_file(work, list(models.values()), source, drawn, reader, on_progress=on_progress)
        tables, rows = {}, []
        for number, (name, each) in enumerate(models.items()):
            of_model, resamples = _measured(each, found, number)
            tables = tables or of_model
            for measure, table in of_model.items():
                for reference, matrix in references.items():
                    row = {"model": name, "measure": measure, "matrix": reference}
                    rows.append(row | _agreement(table, matrix, resamples.get(measure)))
        agreements = pd.DataFrame(rows)
        for name, table in tables.items():
            table.to_csv(work.folder / f"{name}.csv", index_label="amino_acid")
        agreements.to_csv(work.folder / "agreement.csv", index=False)
        arcs = found.pairs[0].arcs()
        sums = {"sums": found.pairs[0].sums().sum(0)} | ({} if arcs is None else {"arcs": arcs.sum(0)})
        np.savez(work.folder / "pair_attention.npz", **sums)
        summary = {
            "num_sequences": found.summary.num_used,
            "num_over_window": found.summary.num_long,
            "num_residues": found.num_residues,
            "absent_amino_acids": found.absent,
            **asdict(reader),
            "num_untrained": num_untrained,
        }
        (work.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _draw(work.folder, figure_format, tables, references, agreements, found)
        work.finish_as_folder(output)
    return Similarity(found.summary, agreements, _notes(model, found, tables))


def untrained(model: ProteinLM, seed: int) -> ProteinLM:
    """Return a model of the same configuration with random weights."""
    fresh = ProteinLM(model.config)
    fresh.initialize(torch.Generator().manual_seed(seed))
    return fresh.to(model.device).eval()


def _measured(model: ProteinLM, found: FileSums, number: int) -> tuple[dict[str, pd.DataFrame], dict[str, Resamples]]:
    """Return the tables of a model by the name of the measure, and bootstrap resamples of those that depend on proteins."""
    soft, arcs = found.pairs[number].sums(), found.pairs[number].arcs()
    of_weights: dict[str, Measure] = {SIMILARITY: correlation_over_heads, ENRICHMENT: enrichment}
    tables = {name: frame(measure(soft.sum(0))) for name, measure in of_weights.items()}
    resamples = Resamples.of(soft, of_weights)
    if arcs is not None:
        tables[ARCS] = frame(correlation_over_heads(arcs.sum(0)))
        resamples |= Resamples.of(arcs, {ARCS: correlation_over_heads})
    if (kernel := kernel_similarity(model)) is not None:
        tables[KERNEL] = frame(kernel)
    return tables, resamples


def _agreement(table: pd.DataFrame, matrix: pd.DataFrame, resamples: Resamples | None) -> dict[str, float]:
    value = agreement(table, matrix)
    interval = np.full((2, 2), np.nan) if resamples is None else resamples.interval(matrix)
    row: dict[str, float] = {"num_pairs": value.num_pairs}
    for name, ends in zip(("pearson", "spearman"), interval, strict=True):
        row |= {name: getattr(value, name), f"{name}_low": ends[0], f"{name}_high": ends[1]}
        row[f"{name}_p"] = getattr(value, f"{name}_p")
    return row


def _caption(found: FileSums, agreements: pd.DataFrame, matrix: str) -> str:
    rows = agreements[(agreements["model"] == TRAINED) & (agreements["matrix"] == matrix)]
    found_with = zip(rows["measure"], rows["pearson"], rows["pearson_p"], strict=True)
    values = ", ".join(f"{measure} {value:.2f} (p {p:.4f})" for measure, value, p in found_with)
    return f"{found.summary.num_used:,} proteins, {found.num_residues:,} residues; Pearson with {matrix}: {values}"


def _notes(model: ProteinLM, found: FileSums, tables: dict[str, pd.DataFrame]) -> list[str]:
    notes = []
    if found.absent:
        notes.append(f"no {', '.join(found.absent)} in these proteins: cells empty")
    num_heads = model.config.num_layers * model.config.num_heads
    if num_heads < 3:
        notes.append(f"{num_heads} heads in all: a correlation over heads needs three or more")
    if ARCS in tables and (arcs := found.pairs[0].arcs()) is not None:
        num_with = int((arcs.sum(0).sum((2, 3)) > 0).sum())
        notes.append(f"{num_with} of {num_heads} heads have arcs, weights of 0.3 or more between residues")
    if KERNEL not in tables:
        notes.append("no kernel.csv: the first layer's attention is not linear")
    return notes


def _draw(
    folder: Path,
    figure_format: str,
    tables: dict[str, pd.DataFrame],
    references: dict[str, pd.DataFrame],
    agreements: pd.DataFrame,
    found: FileSums,
) -> None:
    """Draw the measures, their agreement with the matrices, and the trees of amino acids."""
    first, matrix = next(iter(references.items()))
    caption = _caption(found, agreements, first)
    panels = similarity_heatmaps(tables, normalized(matrix), name=first, caption=caption)
    save_figure(panels, folder / f"similarity{figure_format}")
    save_figure(agreement_intervals(agreements), folder / f"agreement{figure_format}")
    trees = {name: tables[name] for name in (SIMILARITY, KERNEL) if name in tables}
    if (clustered := clustered_similarity(trees, matrix, name=first)) is not None:
        save_figure(clustered, folder / f"clustered{figure_format}")


def describe(agreements: pd.DataFrame) -> list[str]:
    """Return a line for each measure and matrix: the model's agreement, and that of untrained models."""
    trained = agreements["model"] == TRAINED
    lines = []
    for row in pd.DataFrame(agreements[trained]).to_dict("records"):
        parts = []
        for name in ("pearson", "spearman"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            interval = f" ({low:.3f} to {high:.3f})" if low == low else ""
            parts.append(f"{name.capitalize()} {row[name]:.3f}{interval}, permutation p {row[f'{name}_p']:.4f}")
        line = f"{row['measure']}, {row['matrix']}: {'; '.join(parts)}"
        same = (agreements["measure"] == row["measure"]) & (agreements["matrix"] == row["matrix"])
        null = agreements.loc[same & ~trained, "pearson"]
        if len(null):
            line += f"; untrained, Pearson {', '.join(f'{value:.3f}' for value in null)}"
        lines.append(line)
    return lines
