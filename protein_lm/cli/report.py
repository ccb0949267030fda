"""The verb that gathers what is known of a run on one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, Device

if TYPE_CHECKING:
    from protein_lm.results.report_page import Section


@app.command(epilog="Example: protein-lm report run -o report.html --data swissprot")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of train; its best model is looked at.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="HTML page to make.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="STORE", help="Corpus of the run; without it, no sections that need it."),
    ] = None,
    fasta: Annotated[
        Path | None, typer.Option(metavar="FASTA", help="Its first two proteins show attention, not those of test.")
    ] = None,
    max_sequences: Annotated[
        int, typer.Option(min=2, help="Most sequences of a split to evaluate, and for the similarity of amino acids.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """A page about a run: data, recipe, curves, evaluation, attention, similarity, kernel error, generated proteins."""
    from protein_lm.results.report import ReportChoice, check_report_output, write_report

    check_report_output(output)
    choice = ReportChoice(
        data=data, fasta=fasta, max_sequences=max_sequences, seed=seed, tokens_per_batch=batch_tokens, device=device
    )
    write_report(run, output, choice, on_section=_tell)
    print(f"{output}: open it in a browser; it needs nothing else")


def _tell(section: "Section") -> None:
    done = f"not computed: {section.missing}" if section.missing else f"{section.seconds:.1f} s"
    print(f"  {section.title}: {done}", flush=True)
