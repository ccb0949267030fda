"""The verb that describes model directories."""

from typing import Annotated

import typer

from protein_lm.cli.app import app


@app.command(epilog="Example: protein-lm info run")
def info(model: Annotated[str, typer.Argument(metavar="M", help="Model directory, or a run directory.")]) -> None:
    """Show what a model directory holds."""
    from protein_lm.checkpoint import describe

    print(describe(model))
