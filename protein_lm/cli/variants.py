"""The verb that scores variants of a protein: variants."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import FigureFormat, Precision, VariantLongPolicy, VariantStrategy
from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, Device, FormatOfFigures, ModelName, tell_names
from protein_lm.errors import ConfigError, OutputError, one_line

if TYPE_CHECKING:
    from protein_lm.inference.variants import Scoring
    from protein_lm.model.language_model import ProteinLM

_SOME_WITHOUT_SCORE = 1
_PER_RESIDUE = "score is per residue, total_score has the sums"


@app.command(
    epilog="Example: protein-lm variants --model run --sequence P62593.fasta --mutants assay.csv -o scores.csv; or "
    "--saturate instead of --mutants"
)
def variants(
    model: ModelName,
    sequence: Annotated[
        Path,
        typer.Option(
            metavar="FASTA",
            help="Wild type. For a folder of assays: all wild types, or ProteinGym's reference table (CSV).",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="TABLE",
            help="Table to make: .csv, .tsv or .parquet; - for CSV on output. For a folder of assays: folder to make.",
        ),
    ],
    mutants: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Variants to score: a table with the column mutant (A42G, A42G:C50D, p.Ala42Gly) or mutated_sequence, or a "
            "folder of such tables.",
        ),
    ] = None,
    saturate: Annotated[
        bool, typer.Option("--saturate", help="Score all 19 substitutions of every residue, and draw a heatmap.")
    ] = False,
    strategy: Annotated[
        VariantStrategy | None,
        typer.Option(
            help="How to score. If not given: masked-marginals; causal models have log-likelihood alone.",
            show_default=False,
        ),
    ] = None,
    first_residue: Annotated[
        int, typer.Option("--offset-idx", metavar="N", help="Number of the wild type's first residue in the table.")
    ] = 1,
    long_sequences: Annotated[
        VariantLongPolicy,
        typer.Option(
            "--long",
            help="Proteins over the model's window: score in windows around what changes, or drop them (exit status 1).",
        ),
    ] = VariantLongPolicy.WINDOW,
    precision: Annotated[
        Precision, typer.Option(help="Precision of matrix products; auto takes the faster one on this machine.")
    ] = Precision.AUTO,
    figure_format: FormatOfFigures = FigureFormat.PNG,
    batch_tokens: BatchTokens = 2048,
    device: Device = "auto",
) -> None:
    """Score variants of a protein: how much a model prefers them to the wild type, in nats.

    If the table has the column DMS_score, the agreement with it is printed. The exit status is 1 if some rows could not be
    scored; their column reason says why. With insertions or deletions in the table, score is per residue, and total_score
    has the sums.
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
    from protein_lm.results.variants import write_scan

    wild_type, num_scored = write_scan(model, sequence, output, figure, scoring, first_residue=first_residue)
    _tell_precision(model, scoring)
    if len(wild_type) > model.max_residues:
        _tell_windows(str(sequence), num_scored, model)
    if (num_passed := len(wild_type) - num_scored // 19) > 0:
        print(f"{num_passed:,} residues that are none of the 20 amino acids were passed over", file=sys.stderr)
    if figure is not None:
        print(f"{output}: {num_scored:,} substitutions scored by {scoring.strategy.value}; {figure.name}")


def _score_table(
    model: "ProteinLM", sequence: Path, mutants: Path, output: str, first_residue: int, scoring: "Scoring"
) -> None:
    from protein_lm.analysis.assays import describe
    from protein_lm.io.variants.variant_table import hint
    from protein_lm.results.variants import write_scores

    table, measures, num_windows = write_scores(model, sequence, mutants, output, scoring, first_residue=first_residue)
    _tell_precision(model, scoring)
    summary = sys.stderr if output == "-" else sys.stdout
    num_unscored = _tell_unscored(mutants, table.reasons, hint(table))
    if num_windows:
        _tell_windows(str(mutants), num_windows, model)
    if table.has_indels:
        print(f"{mutants} has insertions or deletions: {_PER_RESIDUE}", file=sys.stderr)
    num_scored = len(table.variants) - num_unscored
    print(f"{output}: {num_scored:,} variants scored by {scoring.strategy.value}", file=summary)
    if measures is not None:
        print(describe(measures), file=summary)
    if num_unscored:
        raise typer.Exit(_SOME_WITHOUT_SCORE)


def _score_folder(
    model: "ProteinLM", wild_types: Path, mutants: Path, output: Path, first_residue: int, scoring: "Scoring"
) -> None:
    from protein_lm.io.variants.variant_table import hint
    from protein_lm.results.variants import write_assays

    result = write_assays(model, wild_types, mutants, output, scoring, first_residue=first_residue)
    print(result.summary.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"{output}: assays.csv, and the scores of each by {scoring.strategy.value}")
    _tell_precision(model, scoring)
    assays, absent, left_out = result.folder.assays, result.folder.absent, result.folder.left_out
    over = f"assays of proteins over the model's window ({model.max_residues:,} residues)"
    with_indels = [assay.name for assay in assays if assay.table.has_indels]
    for fact, names in (
        (f"of {wild_types} have no table in {mutants}", absent),
        (f"{over} left out", left_out),
        (f"{over} scored in windows around what changes", result.in_windows),
        (f"assays have insertions or deletions ({_PER_RESIDUE})", with_indels),
    ):
        tell_names(fact, names, number=len(names))
    hints = [hint(assay.table, is_one_of_many=len(assays) > 1) for assay in assays]
    faults = [_tell_unscored(each.path, each.table.reasons, advice) for each, advice in zip(assays, hints, strict=True)]
    if sum(faults) or left_out:
        raise typer.Exit(_SOME_WITHOUT_SCORE)


def _tell_precision(model: "ProteinLM", scoring: "Scoring") -> None:
    """Print a remark on the precision on standard error, if there is one; after the work, which may end in an error."""
    from protein_lm.model.precision import choose

    if reason := choose(scoring.precision, model.device.type).reason:
        print(reason, file=sys.stderr)


def _tell_windows(what: str, number: int, model: "ProteinLM") -> None:
    """Print on standard error how many variants were not read whole."""
    print(
        f"{what}: {number:,} variants scored in windows around what changes; they have more than the "
        f"{model.max_residues:,} residues that this model reads",
        file=sys.stderr,
    )


def _tell_unscored(path: Path, reasons: Sequence[str], hint: str) -> int:
    """Print on standard error how many rows have no score, and why the first has none; return their number."""
    faults = [(row, reason) for row, reason in enumerate(reasons, 1) if reason]
    if faults:
        row, reason = faults[0]
        print(one_line(f"{path}: {len(faults):,} rows have no score; row {row}: {reason}{hint}"), file=sys.stderr)
    return len(faults)
