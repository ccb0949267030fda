"""The verb that takes attention out of a model."""

import re
from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import Device, ModelName
from protein_lm.errors import ConfigError


@app.command(epilog="Example: protein-lm attention data/P00974.fasta --model run -o attention --layer 1 --layer 2")
def attention(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="One or a few proteins, plain or gzip.")],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    layers: Annotated[
        list[int] | None, typer.Option("--layer", min=1, help="Layer, from 1. Repeatable; all if none.")
    ] = None,
    heads: Annotated[
        list[int] | None, typer.Option("--head", min=1, help="Head, from 1. Repeatable; all if none.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="A-B", help="Attending residues, from 1; all if none.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A-B", help="Attended residues, from 1; all if none.")
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Means over so many blocks on each side; default where weights take over 256 MiB: 512."
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The weights themselves, up to 4 GiB for a protein.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Also list the K residues that each attends to most.")
    ] = None,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="Also attention by offset and by attended residue, with a figure.")
    ] = False,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Also attention through all layers (Abnar & Zuidema 2020).")
    ] = False,
    num_draws: Annotated[
        int | None,
        typer.Option("--draws", min=2, help="Also mean and standard error over so many draws of random features."),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also a page to walk around in with a browser, which needs no network.")
    ] = False,
    structure: Annotated[
        str | None, typer.Option(metavar="FILE[:CHAIN]", help="PDB or mmCIF of the protein, for --html to colour.")
    ] = None,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figure.")] = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Attention matrices, a table of what each head looks at, and a figure, for each protein; linear kinds too.

    Long proteins get means over blocks instead of matrices. Matrices, block means and --top show the chosen rows and columns.
    """
    from protein_lm.files.output import check_absent

    check_absent(output)
    if full and pixels:
        raise ConfigError("--full is the weights themselves and --pixels means over blocks of them; leave one out")
    if structure and not html:
        raise ConfigError("--structure is shown by --html; add it, or leave out --structure")
    ranges = _range(rows, "--rows"), _range(columns, "--columns")

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.io.readers import read_records
    from protein_lm.results.attention import AttentionChoice, write_attention

    choice = AttentionChoice(
        rows=ranges[0],
        columns=ranges[1],
        pixels=pixels,
        full=full,
        top=top,
        profiles=profiles,
        rollout=rollout,
        num_draws=num_draws,
        html=html,
        structure=structure,
    )
    written = write_attention(
        load_model(model, device=device),
        read_records(fasta),
        output,
        layers=[layer - 1 for layer in layers] if layers else None,
        heads=[head - 1 for head in heads] if heads else None,
        choice=choice,
        figure_format=f".{figure_format.value}",
    )
    names = ", ".join(each.name for each in written)
    pages = ", page (.html)" if html else ""
    print(f"{output}: matrices (.npz), head statistics (.csv){pages} and figure (.{figure_format.value}) of {names}")
    for each in written:
        if each.note:
            print(f"  {each.note}")


def _range(text: str | None, option: str) -> tuple[int, int] | None:
    """First and last residue of `A-B`, or of `A` alone."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"{option} {text}: expected first and last residue, from 1, for example {option} 5-80")
    return first, last
