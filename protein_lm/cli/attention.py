"""The verbs that look at attention: attention, kernel-error."""

import re
from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import Device, FormatOfFigures, ModelName, OutputFolder
from protein_lm.errors import ConfigError


@app.command(epilog="Example: protein-lm attention data/P00974.fasta --model run -o attention --layer 1 --layer 2")
def attention(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="One or a few proteins, plain or compressed.")],
    model: ModelName,
    output: OutputFolder,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", min=1, help="Layer to write, from 1. Repeatable; all if not given.")
    ] = None,
    heads: Annotated[
        list[int] | None, typer.Option("--head", min=1, help="Head to write, from 1. Repeatable; all if not given.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="A-B", help="Attending residues to write, from 1; all if not given."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A-B", help="Attended residues to write, from 1; all if not given."),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Blocks on each side to take means over. If not given: all weights up to 256 MiB, else 512 blocks.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write all weights instead of means, up to 4 GiB for each protein.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Also write the K residues that each residue attends to most."),
    ] = None,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="Also write attention by offset and by attended residue, with a figure.")
    ] = False,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Also write attention through all layers (Abnar & Zuidema 2020).")
    ] = False,
    num_draws: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Also write mean and standard error over N draws of the random features."
        ),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also write an interactive page for a browser; it needs no network.")
    ] = False,
    structure: Annotated[
        str | None,
        typer.Option(metavar="FILE[:CHAIN]", help="Structure of the protein that --html colours: PDB or mmCIF."),
    ] = None,
    figure_format: FormatOfFigures = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Write the attention of each protein: matrices, a table that describes each head, and a figure.

    It works for all kinds of attention, linear ones too. Long proteins get means over blocks instead of matrices.
    Matrices, block means and --top have the chosen rows and columns alone.
    """
    from protein_lm.files.output import check_absent

    check_absent(output)
    if full and pixels:
        raise ConfigError("--full writes all weights and --pixels means over blocks of them; leave one out")
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
        layers=layers or None,
        heads=heads or None,
        choice=choice,
        figure_format=f".{figure_format.value}",
    )
    names = ", ".join(each.name for each in written)
    pages = ", page (.html)" if html else ""
    print(f"{output}: matrices (.npz), head statistics (.csv){pages} and figure (.{figure_format.value}) of {names}")
    for each in written:
        if each.note:
            print(f"  {each.note}")


@app.command(
    "kernel-error",
    epilog="Example: protein-lm kernel-error data/P00974.fasta --model run -o errors --features 64 --features 256",
)
def kernel_error(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="A few proteins, plain or compressed.")],
    model: ModelName,
    output: OutputFolder,
    feature_types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="MAP-PROJECTION",
            help="Type of features, for example positive-iid. Repeatable; all of the softmax kernel if not given.",
        ),
    ] = None,
    num_features: Annotated[
        list[int] | None,
        typer.Option(
            "--features", min=2, metavar="M", help="Number of random features. Repeatable; 16 to 1024 if not given."
        ),
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--length",
            min=1,
            metavar="L",
            help="Tokens to read from the start of each protein. Repeatable; whole proteins if not given.",
        ),
    ] = None,
    scales: Annotated[
        list[float] | None,
        typer.Option("--scale", metavar="S", help="Factor of queries and keys. Repeatable; 1 if not given."),
    ] = None,
    num_draws: Annotated[int, typer.Option(min=1, metavar="N", help="Draws of the features to average over.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first draw; the next draws have the next seeds.")] = 0,
    figure_format: FormatOfFigures = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Measure the error of random features against exact attention, on a model's own queries and keys."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.analysis import kernel_error as analysis
    from protein_lm.checkpoint.directory import load_model
    from protein_lm.io.readers import read_records
    from protein_lm.results.kernel_error import write_kernel_error

    table = analysis.kernel_error(
        load_model(model, device=device),
        list(read_records(fasta)),
        feature_types=feature_types or analysis.SOFTMAX_TYPES,
        num_features=num_features or analysis.NUM_FEATURES,
        lengths=lengths or (),
        norm_scales=scales or (1.0,),
        num_draws=num_draws,
        seed=seed,
    )
    write_kernel_error(table, output, figure_format=f".{figure_format.value}")
    print(f"{output}: {len(table):,} rows in kernel_error.csv, figures of the errors of matrix and output")
    print(analysis.describe(table))


def _range(text: str | None, option: str) -> tuple[int, int] | None:
    """Return the first and last residue of `A-B`, or of `A` alone."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"{option} {text}: expected first and last residue, from 1, for example {option} 5-80")
    return first, last
