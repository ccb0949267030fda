"""The verb that measures the error of random features."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import Device, ModelName


@app.command(
    "kernel-error",
    epilog="Example: protein-lm kernel-error data/P00974.fasta --model run -o errors --features 64 --features 256",
)
def kernel_error(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="A few proteins, plain or gzip.")],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    feature_types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="MAP-PROJECTION",
            help="As positive-iid. Repeatable; all of the softmax kernel if none.",
        ),
    ] = None,
    num_features: Annotated[
        list[int] | None, typer.Option("--features", min=2, metavar="M", help="Repeatable; 16 to 1024 if none.")
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--length", min=1, metavar="L", help="First tokens of each protein only. Repeatable; whole if none."
        ),
    ] = None,
    scales: Annotated[
        list[float] | None,
        typer.Option("--scale", metavar="S", help="Factor of queries and keys. Repeatable; 1 if none."),
    ] = None,
    num_draws: Annotated[int, typer.Option("--draws", min=1, help="Draws of the features.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first draw.")] = 0,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figures.")] = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """How far random features are from exact attention on a model's own queries and keys, layer by layer."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.analysis import kernel_error as analysis
    from protein_lm.checkpoint.directory import load_model
    from protein_lm.io.readers import read_records
    from protein_lm.results.runs import write_kernel_error

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
