"""The verbs under `protein-lm contacts`: train, predict."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import Device, FormatOfFigures, ModelName, OutputFolder

contacts = typer.Typer(help="Predict contacts of residues from attention, by logistic regression.")
app.add_typer(contacts, name="contacts")


@contacts.command(epilog="Example: protein-lm contacts train 1abc.cif 2ptc.pdb:I --model run -o contacts.json")
def train(
    structures: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:CHAIN]...", help="Structures to train on: PDB or mmCIF, plain or compressed."),
    ],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="JSON", help="Regression to make: .json.")],
    fasta: Annotated[
        Path | None,
        typer.Option(
            "--fasta",
            metavar="FASTA",
            help="Sequences that contain the structures, in the same order; those of the structures if not given.",
        ),
    ] = None,
    penalty: Annotated[float, typer.Option(min=0, help="Penalty of the sum of absolute weights (L1).")] = 0.15,
    device: Device = "auto",
) -> None:
    """Train a regression on a few structures: which heads tell contacts (Rao et al. 2021)."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.contacts import read_training_examples, write_regression

    examples = read_training_examples(structures, fasta)
    regression = write_regression(load_model(model, device=device), examples, output, penalty=penalty)
    num_heads = sum(len(of_layer) for of_layer in regression.weights)
    print(
        f"{output}: {regression.num_heads_used} of {num_heads} heads used; {regression.num_pairs:,} pairs, "
        f"{regression.num_contacts:,} in contact, of {len(examples)} structures"
    )


@contacts.command(
    epilog="Example: protein-lm contacts predict data/P00974.fasta --structure 2ptc.pdb:I --model run "
    "--regression contacts.json -o contacts"
)
def predict(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Proteins: a FASTA file, or a structure as FILE or FILE:CHAIN.")
    ],
    model: ModelName,
    output: OutputFolder,
    regression: Annotated[
        Path | None,
        typer.Option(
            "--regression",
            "-r",
            metavar="JSON",
            help="Regression made by contacts train; if not given, that of the model itself, which ESM-2 has.",
        ),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:CHAIN]", help="Structure of the only protein in SOURCE, to compare with: PDB or mmCIF."
        ),
    ] = None,
    figure_format: FormatOfFigures = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Predict the probability of contact of all pairs of residues; with a structure, measure the precision as well."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.analysis.contacts import Regression
    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.contacts import read_examples, write_contacts

    opened = load_model(model, device=device)
    examples = read_examples(source, structure)
    loaded = Regression.of(opened) if regression is None else Regression.load(regression, opened)
    written = write_contacts(opened, examples, loaded, output, figure_format=f".{figure_format.value}")
    print(f"{output}: pairs (.parquet) and map (.{figure_format.value}) of {', '.join(written)}")
    for name, table in written.items():
        if table is not None:
            print(f"{name}: precision of the most probable pairs\n{table.to_string(index=False, float_format='%.3f')}")
