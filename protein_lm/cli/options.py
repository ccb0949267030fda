"""Options, progress bars and messages that several verbs share."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protein_lm.choices import FigureFormat, ReadingLongPolicy
from protein_lm.errors import named

if TYPE_CHECKING:
    from protein_lm.inference.reading import Summary

MODEL_HELP = "Model directory, run directory (its best model), org/model or org/model@revision on the Hugging Face Hub."
ModelName = Annotated[str, typer.Option("--model", "-m", metavar="M", help=MODEL_HELP)]
CorpusName = Annotated[
    Path, typer.Option("--data", metavar="CORPUS", help="Corpus: a folder made by data prepare or data join.")
]
SequenceSource = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="Proteins: FASTA, UniProtKB .dat, UniProtKB or UniRef XML, CSV, TSV or Parquet; plain, .gz, .xz or .zst; - for "
        "standard input.",
    ),
]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")]
OutputTable = Annotated[
    str,
    typer.Option("--output", "-o", metavar="TABLE", help="Table to make: .csv, .tsv or .parquet; - for CSV on output."),
]
FormatOfFigures = Annotated[FigureFormat, typer.Option("--format", help="Format of the figures.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume a stopped command for the same output, if there is one.")
]
ReadingLong = Annotated[
    ReadingLongPolicy,
    typer.Option(
        "--long",
        help="Sequences over the model's window: stop (error), leave out (drop), or read whole (extend; causal models with "
        "linear attention and rotary, sinusoidal or no positions).",
    ),
]
BatchTokens = Annotated[
    int, typer.Option(min=1, help="Tokens computed at once. More take more memory; results do not change.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, mps, or auto: an accelerator if there is one.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]


@contextmanager
def progress(
    label: str, total: int | None = None, *, of_bytes: bool = False, hidden: bool = False
) -> Iterator[Callable[..., None] | None]:
    """Show a progress bar on standard error, unless it is no terminal or the bar is to be hidden.

    Yields:
        A function of the number that is done, and of the new total where it becomes known; None if no bar is shown.
    """
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    count = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = ("{task.description}", BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)

        def show(done: int, total: int | None = total) -> None:
            bars.update(task, completed=done, total=total)

        yield show


@contextmanager
def bytes_progress(label: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar for a number of bytes, as `progress`."""
    with progress(label, total, of_bytes=True) as show:
        yield show


def tell_long(summary: "Summary", policy: ReadingLongPolicy) -> None:
    """Print on standard error the first sequences over the model's window, and whether they were left out."""
    if summary.num_long:
        is_dropped = policy is ReadingLongPolicy.DROP
        fate = "left out" if is_dropped else "read on beyond it, where the model was never trained"
        tell_names(f"over the model's window {fate}", map(named, summary.first_long), number=summary.num_long)


def tell_dropped(identifiers: Sequence[str]) -> None:
    """Print on standard error the first sequences that were left out for their length."""
    tell_names("over the model's window left out", map(named, identifiers), number=len(identifiers))


def tell_names(fact: str, names: Iterable[str], *, number: int, most: int = 5) -> None:
    """Print on standard error the number of things that a fact is about, and the first names; nothing if there are none."""
    if number:
        shown = list(islice(names, most))
        print(f"{number:,} {fact}: {', '.join(shown)}{', ...' if number > len(shown) else ''}", file=sys.stderr)
