"""The verbs that read contacts of residues out of attention."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import FigureFormat
from protein_lm.cli.app import app
from protein_lm.cli.options import Device, ModelName

contacts = typer.Typer(help="Contacts of residues out of attention, by logistic regression.")
app.add_typer(contacts, name="contacts")


@contacts.command(epilog="Example: protein-lm contacts train 1abc.cif 2ptc.pdb:I --model run -o contacts.json")
def train(
    structures: Annotated[
        list[str], typer.Argument(metavar="FILE[:CHAIN]...", help="PDB or mmCIF, plain or compressed.")
    ],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="JSON", help="File to make.")],
    fasta: Annotated[
        Path | None,
        typer.Option("--fasta", metavar="FASTA", help="Sequences that the structures are parts of, in the same order."),
    ] = None,
    penalty: Annotated[float, typer.Option(min=0, help="Of the sum of absolute weights (L1).")] = 0.15,
    device: Device = "auto",
) -> None:
    """Learn from a few structures which heads tell contacts (Rao et al. 2021)."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.contacts import read_training_examples, write_regression

    examples = read_training_examples(structures, fasta)
    made = write_regression(load_model(model, device=device), examples, output, penalty=penalty)
    num_heads = sum(len(of_layer) for of_layer in made.weights)
    print(
        f"{output}: {made.num_heads_used} of {num_heads} heads used; {made.num_pairs:,} pairs, {made.num_contacts:,} in "
        f"contact, of {len(examples)} structures"
    )


@contacts.command(
    epilog="Example: protein-lm contacts predict data/P00974.fasta --structure 2ptc.pdb:I --model run "
    "--regression contacts.json -o contacts"
)
def predict(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A FASTA file, or a structure as FILE or FILE:CHAIN.")
    ],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    regression: Annotated[
        Path | None,
        typer.Option(
            "--regression",
            "-r",
            metavar="JSON",
            help="File made by contacts train; ESM-2 brings a regression of its own.",
        ),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(metavar="FILE[:CHAIN]", help="Structure of the one protein in SOURCE, to compare with."),
    ] = None,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figure.")] = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Probability of contact of all pairs of residues as table and map; with a structure, precision beside the true map."""
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
