"""Options that several verbs have, and what several say."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Option("--model", "-m", metavar="M", help="Model directory, or a run directory (its best model).")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, mps, or auto.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once; memory against speed, same results.")]


def tell_dropped(identifiers: Sequence[str]) -> None:
    """Name, on standard error, the sequences that were left out for their length."""
    if identifiers:
        shown = ", ".join(identifiers[:5]) + (", ..." if len(identifiers) > 5 else "")
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
