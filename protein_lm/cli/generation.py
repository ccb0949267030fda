"""The verbs that make proteins, and look at what was made."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from protein_lm.alphabet import STANDARD_RESIDUES, decode
from protein_lm.choices import FigureFormat, FillingOrder
from protein_lm.cli.app import app
from protein_lm.cli.options import BatchTokens, Device, ModelName
from protein_lm.errors import ConfigError

FastaOutput = Annotated[
    str, typer.Option("--output", "-o", metavar="FASTA", help=".fasta, .fa or .faa, also .gz; - for standard output.")
]
Temperature = Annotated[float, typer.Option(metavar="T", help="Below 1: surer; above: more various; 0: most probable.")]
TopK = Annotated[int, typer.Option(metavar="K", help="Only the K most probable residues; 0: all.")]
TopP = Annotated[float, typer.Option(metavar="P", help="Only the most probable residues that together reach P.")]
LettersToDraw = Annotated[str, typer.Option("--residues", metavar="LETTERS", help="Residues that may be drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random numbers.")]
Item = TypeVar("Item")


@app.command(epilog="Example: protein-lm generate --model run -n 100 -o generated.fasta --top-p 0.95")
def generate(
    model: ModelName,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Sequences to make, for each prefix.")] = 1,
    output: FastaOutput = "-",
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="F", help="Log-probabilities of residues that were there just before, times F.")
    ] = 1.0,
    repetition_window: Annotated[int, typer.Option(metavar="W", help="How many residues before.")] = 8,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="RESIDUES", help="How sequences begin: residues, or a FASTA file (its name has a dot or /)."
        ),
    ] = "",
    min_length: Annotated[int, typer.Option(min=1, help="Residues before which no sequence ends.")] = 1,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Residues at which a sequence stops, unfinished; the window if none.")
    ] = None,
    residues: LettersToDraw = STANDARD_RESIDUES,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at once; speed, same results.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """New proteins from a causal model, with log-likelihood (nats) and perplexity in their headers."""
    from protein_lm.inference.sampling import Sampling
    from protein_lm.io.fasta_writer import check_fasta_output, new_fasta

    check_fasta_output(output)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
        residues=residues,
    )

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.inference.generate import Generator, read_prefixes

    prefixes = read_prefixes(prefix)
    generator = Generator(
        load_model(model, device=device),
        sampling=sampling,
        min_length=min_length,
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
    )
    num_unfinished = 0
    with new_fasta(output) as write:
        for made in _counted(generator.generate(number, prefixes), number * len(prefixes), output):
            num_unfinished += not made.is_finished
            write(made.header, decode(made.residues))
    if output != "-":
        stopped = (
            f", {num_unfinished:,} of them unfinished at {generator.max_length:,} residues" if num_unfinished else ""
        )
        print(f"{output}: {number * len(prefixes):,} generated{stopped}")


@app.command(epilog="Example: protein-lm infill templates.fasta --model masked_run -o filled.fasta --steps 8")
def infill(
    templates: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins with _ for each residue to fill in.")],
    model: ModelName,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Sequences to make of each.")] = 1,
    output: FastaOutput = "-",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Passes of the model in which they are filled in; one residue each if none."),
    ] = None,
    order: Annotated[
        FillingOrder, typer.Option(help="Which residues come first: those the model is surest of, or any.")
    ] = FillingOrder.CONFIDENT,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    residues: LettersToDraw = STANDARD_RESIDUES,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Fill in marked residues by a masked model; their pseudo-log-likelihood (nats) stands in the headers."""
    from protein_lm.inference.sampling import Sampling
    from protein_lm.io.fasta_writer import check_fasta_output, new_fasta

    check_fasta_output(output)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, residues=residues)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.inference.infill import infill
    from protein_lm.inference.templates import read_templates

    to_fill = list(read_templates(templates))
    filled = infill(
        load_model(model, device=device),
        to_fill,
        number=number,
        num_steps=steps,
        order=order,
        sampling=sampling,
        seed=seed,
        tokens_per_batch=batch_tokens,
    )
    with new_fasta(output) as write:
        for made in _counted(filled, number * len(to_fill), output):
            write(made.header, decode(made.residues))
    if output != "-":
        print(f"{output}: {number * len(to_fill):,} filled in")


@app.command(epilog="Example: protein-lm compare generated.fasta --data swissprot -o comparison")
def compare(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Generated proteins, plain or compressed.")],
    store: Annotated[Path, typer.Option("--data", metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    max_sequences: Annotated[int, typer.Option(min=2, help="Real sequences to draw from the split train.")] = 10000,
    seed: Seed = 0,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figure.")] = FigureFormat.PNG,
) -> None:
    """Generated proteins beside the training split: lengths, residues, k-mers, low complexity, nearest relatives."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.corpus.clusters import find_mmseqs
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.io.readers import read_records
    from protein_lm.results.runs import write_generated_and_real

    missing = None
    try:
        find_mmseqs()
    except ConfigError as error:
        missing = error
    table = write_generated_and_real(
        list(read_records(fasta)),
        open_corpus(store),
        output,
        max_sequences=max_sequences,
        seed=seed,
        with_relatives=missing is None,
        figure_format=f".{figure_format.value}",
    )
    if missing:
        print(f"without nearest relatives: {missing}", file=sys.stderr)
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))


def _counted(made: Iterable[Item], total: int, output: str) -> Iterable[Item]:
    """The same, with a bar on standard error where a person looks and the sequences themselves do not show."""
    if output == "-" or not sys.stderr.isatty():
        return made
    from rich.console import Console
    from rich.progress import track

    return track(made, "sequences", total=total, console=Console(stderr=True), transient=True)
