"""Options that several verbs have, and what several say."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

MODEL_HELP = "Model directory, run directory (its best model), org/model or org/model@revision on the Hugging Face Hub."
ModelName = Annotated[str, typer.Option("--model", "-m", metavar="M", help=MODEL_HELP)]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, mps, or auto.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once; memory against speed, same results.")]


def tell_dropped(identifiers: Sequence[str]) -> None:
    """Name, on standard error, the sequences that were left out for their length."""
    if identifiers:
        shown = ", ".join(identifiers[:5]) + (", ..." if len(identifiers) > 5 else "")
        print(f"{len(identifiers):,} over the model's window left out: {shown}", file=sys.stderr)
