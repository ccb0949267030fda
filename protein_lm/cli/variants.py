"""The verb that scores variants of a protein."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import FigureFormat, Precision, VariantLongPolicy, VariantStrategy
from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, Device, ModelName
from protein_lm.errors import ConfigError, OutputError, one_line

if TYPE_CHECKING:
    from protein_lm.inference.variants import Scoring
    from protein_lm.model.language_model import ProteinLM

_SOME_WITHOUT_SCORE = 1
_PER_RESIDUE = "score is per residue, total_score has the sums"


@app.command(
    epilog="Example: protein-lm variants --model run --sequence P62593.fasta --mutants assay.csv -o scores.csv; or "
    "--saturate in place of --mutants"
)
def variants(
    model: ModelName,
    sequence: Annotated[
        Path,
        typer.Option(metavar="FASTA", help="The wild type; for a folder of assays all, or ProteinGym's reference CSV."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output; DIR for a folder."
        ),
    ],
    mutants: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Column mutant (A42G, A42G:C50D, p.Ala42Gly) or mutated_sequence; or a folder of such assays.",
        ),
    ] = None,
    saturate: Annotated[
        bool, typer.Option("--saturate", help="All 19 substitutions of every residue; a heatmap beside TABLE.")
    ] = False,
    strategy: Annotated[
        VariantStrategy | None,
        typer.Option(
            help="masked-marginals if not given; causal models have log-likelihood alone.", show_default=False
        ),
    ] = None,
    first_residue: Annotated[
        int, typer.Option("--offset-idx", metavar="N", help="Number of the sequence's first residue.")
    ] = 1,
    long_sequences: Annotated[
        VariantLongPolicy,
        typer.Option(
            "--long", help="Proteins over the model's window: score in windows around what changes, or drop (status 1)."
        ),
    ] = VariantLongPolicy.WINDOW,
    precision: Annotated[Precision, typer.Option(help="Of matrix products; auto: the faster here.")] = Precision.AUTO,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the heatmap.")] = FigureFormat.PNG,
    batch_tokens: BatchTokens = 2048,
    device: Device = "auto",
) -> None:
    """How much the model prefers variants of a protein to its wild type, in nats, and how well DMS_score agrees.

    The status is 1 if some rows could not be scored; their column reason says why. With insertions or deletions in the table,
    score is per residue, and total_score has the sums.
    """
    from protein_lm.files.output import check_absent
    from protein_lm.files.tables import SUFFIXES, check_table_output
    from protein_lm.io.variants.variant_table import check_first_residue

    if saturate == (mutants is not None):
        raise ConfigError("give either --mutants TABLE or --saturate")
    check_first_residue(first_residue)
    figure = None
    if mutants is not None and mutants.is_dir():
        if output == "-" or Path(output).suffix in SUFFIXES:
            raise OutputError(f"{output}: a folder of assays gives several tables; name a folder for them")
        check_absent(Path(output))
    else:
        check_table_output(output)
    if saturate and output != "-":
        figure = Path(output).with_suffix(f".{figure_format.value}")
        check_absent(figure)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.inference.variants import Scoring, choose_strategy

    opened = load_model(model, device=device)
    scoring = Scoring(choose_strategy(opened, strategy), batch_tokens, precision, long_sequences)
    if mutants is None:
        _scan(opened, sequence, output, figure, first_residue, scoring)
    elif mutants.is_dir():
        _score_folder(opened, sequence, mutants, Path(output), first_residue, scoring)
    else:
        _score_table(opened, sequence, mutants, output, first_residue, scoring)


def _scan(
    model: "ProteinLM", sequence: Path, output: str, figure: Path | None, first_residue: int, scoring: "Scoring"
) -> None:
    from protein_lm.analysis.variants import scan
    from protein_lm.files.tables import write_table
    from protein_lm.io.variants.assays import read_wild_type
    from protein_lm.plots.saving import save_figure
    from protein_lm.plots.variants import substitution_heatmap

    wild_type = read_wild_type(sequence, longest=_longest(model, scoring))
    table, matrix = scan(model, wild_type, scoring, first_residue=first_residue)
    if figure is not None:
        title = f"{wild_type.sequence_id[:80]}: {scoring.strategy.value}"
        heatmap = substitution_heatmap(matrix, wild_type.sequence, title=title, first_residue=first_residue)
        save_figure(heatmap, figure)
    write_table(table, output)
    _tell_precision(model, scoring)
    if len(wild_type) > model.max_residues:
        _tell_windows(str(sequence), len(table), model)
    if (num_passed := len(wild_type) - len(table) // 19) > 0:
        print(f"{num_passed:,} residues that are none of the 20 amino acids were passed over", file=sys.stderr)
    if figure is not None:
        print(f"{output}: {len(table):,} substitutions scored by {scoring.strategy.value}; {figure.name}")


def _score_table(
    model: "ProteinLM", sequence: Path, mutants: Path, output: str, first_residue: int, scoring: "Scoring"
) -> None:
    from protein_lm.analysis.assays import agreement_with, describe
    from protein_lm.analysis.variants import SCORE, num_in_windows, scorable, scored
    from protein_lm.files.tables import write_table
    from protein_lm.io.variants.assays import read_wild_type
    from protein_lm.io.variants.measurements import MEASURED, read_measurements
    from protein_lm.io.variants.variant_table import hint, read_variants

    wild_type = read_wild_type(sequence, longest=_longest(model, scoring))
    table = read_variants(mutants, wild_type, first_residue=first_residue)
    table = scorable(table, mutants, scoring, longest=model.max_residues)
    measurements = read_measurements(table.frame, mutants) if MEASURED in table.frame else None
    frame = scored(model, table, scoring)
    write_table(frame, output)
    _tell_precision(model, scoring)
    summary = sys.stderr if output == "-" else sys.stdout
    num_unscored = _tell_unscored(mutants, table.reasons, hint(table))
    if num_windows := num_in_windows(table, longest=model.max_residues):
        _tell_windows(str(mutants), num_windows, model)
    if table.has_indels:
        print(f"{mutants} has insertions or deletions: {_PER_RESIDUE}", file=sys.stderr)
    print(f"{output}: {len(frame) - num_unscored:,} variants scored by {scoring.strategy.value}", file=summary)
    if measurements is not None:
        print(describe(agreement_with(frame[SCORE].to_numpy(), measurements)), file=summary)
    if num_unscored:
        raise typer.Exit(_SOME_WITHOUT_SCORE)


def _score_folder(
    model: "ProteinLM", wild_types: Path, mutants: Path, output: Path, first_residue: int, scoring: "Scoring"
) -> None:
    from protein_lm.analysis.variants import num_in_windows, scorable
    from protein_lm.io.variants.assays import read_assays
    from protein_lm.io.variants.variant_table import hint
    from protein_lm.results.runs import write_assays

    longest = model.max_residues
    found = read_assays(mutants, wild_types, first_residue=first_residue, longest=_longest(model, scoring))
    tables = [scorable(assay.table, assay.path, scoring, longest=longest) for assay in found.assays]
    assays = [replace(assay, table=table) for assay, table in zip(found.assays, tables, strict=True)]
    summary = write_assays(model, assays, output, scoring)
    print(summary.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"{output}: assays.csv, and the scores of each by {scoring.strategy.value}")
    _tell_precision(model, scoring)
    _tell_names(f"of {wild_types} have no table in {mutants}", found.absent)
    over = f"assays of proteins over the model's window ({longest:,} residues)"
    _tell_names(f"{over} left out", found.left_out)
    in_windows = [assay.name for assay in assays if num_in_windows(assay.table, longest=longest)]
    _tell_names(f"{over} scored in windows around what changes", in_windows)
    with_indels = [assay.name for assay in assays if assay.table.has_indels]
    _tell_names(f"assays have insertions or deletions ({_PER_RESIDUE})", with_indels)
    hints = [hint(assay.table, is_one_of_many=len(assays) > 1) for assay in assays]
    faults = [_tell_unscored(each.path, each.table.reasons, advice) for each, advice in zip(assays, hints, strict=True)]
    if sum(faults) or found.left_out:
        raise typer.Exit(_SOME_WITHOUT_SCORE)


def _longest(model: "ProteinLM", scoring: "Scoring") -> int | None:
    """Residues of the longest wild type that is scored."""
    return model.max_residues if scoring.long_sequences is VariantLongPolicy.DROP else None


def _tell_precision(model: "ProteinLM", scoring: "Scoring") -> None:
    """Say on standard error what was computed in, if someone should know; not before, when there may be an error to tell."""
    from protein_lm.model.precision import choose

    if reason := choose(scoring.precision, model.device.type).reason:
        print(reason, file=sys.stderr)


def _tell_windows(what: str, number: int, model: "ProteinLM") -> None:
    """Say on standard error how many variants were not read whole."""
    print(
        f"{what}: {number:,} variants scored in windows around what changes; they have more than the "
        f"{model.max_residues:,} residues that this model reads",
        file=sys.stderr,
    )


def _tell_names(fact: str, names: Sequence[str]) -> None:
    """Name on standard error the first of the assays of which something is to be said."""
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        print(f"{len(names):,} {fact}: {shown}", file=sys.stderr)


def _tell_unscored(path: Path, reasons: Sequence[str], hint: str) -> int:
    """Say on standard error how many rows have no score; their number."""
    faults = [(row, reason) for row, reason in enumerate(reasons, 1) if reason]
    if faults:
        row, reason = faults[0]
        print(one_line(f"{path}: {len(faults):,} rows have no score; row {row}: {reason}{hint}"), file=sys.stderr)
    return len(faults)
