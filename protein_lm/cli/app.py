"""The Typer application to which the other modules add their verbs."""

from typing import Annotated

import typer

from protein_lm import __version__

app = typer.Typer(
    help="Train protein language models with linear attention, use them, look inside them.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"protein-lm {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass
