"""Options that several verbs have, and what several say."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import ReadingLongPolicy
from protein_lm.errors import named

if TYPE_CHECKING:
    from protein_lm.inference.reading import Summary

MODEL_HELP = "Model directory, run directory (its best model), org/model or org/model@revision on the Hugging Face Hub."
ModelName = Annotated[str, typer.Option("--model", "-m", metavar="M", help=MODEL_HELP)]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, mps, or auto.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once; memory against speed, same results.")]


SequenceSource = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="FASTA, UniProtKB .dat, UniProtKB or UniRef XML, CSV, TSV or Parquet; plain, .gz, .xz or .zst; - for standard "
        "input.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what a stopped command did for the same output, if there is any.")
]
ReadingLong = Annotated[
    ReadingLongPolicy,
    typer.Option(
        "--long",
        help="Sequences over the model's window: stop (error), drop, or read on (extend; causal models with linear attention "
        "and rotary, sinusoidal or no positions).",
    ),
]


@contextmanager
def sequence_progress(label: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar on standard error for a number of sequences; None where no person looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def tell_long(summary: "Summary", policy: ReadingLongPolicy) -> None:
    """Name, on standard error, the first sequences over the model's window, and what became of them."""
    if summary.num_long:
        shown = ", ".join(map(named, summary.first_long)) + (
            ", ..." if summary.num_long > len(summary.first_long) else ""
        )
        fate = (
            "left out" if policy is ReadingLongPolicy.DROP else "read on beyond it, where the model was never trained"
        )
        print(f"{summary.num_long:,} over the model's window {fate}: {shown}", file=sys.stderr)


def tell_dropped(identifiers: Sequence[str]) -> None:
    """Name, on standard error, the sequences that were left out for their length."""
    if identifiers:
        shown = ", ".join(map(named, identifiers[:5])) + (", ..." if len(identifiers) > 5 else "")
        print(f"{len(identifiers):,} over the model's window left out: {shown}", file=sys.stderr)


@contextmanager
def bytes_progress(label: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error for a number of bytes; None where no person looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.update(task, completed=done)
