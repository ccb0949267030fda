"""The verbs that make proteins, and the one that compares them with real ones: generate, infill, compare."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from protein_lm.alphabet import STANDARD_RESIDUES, decode
from protein_lm.choices import FigureFormat, FillingOrder
from protein_lm.cli.app import app
from protein_lm.cli.options import (
    BatchTokens,
    CorpusName,
    Device,
    FormatOfFigures,
    ModelName,
    OutputFolder,
    Seed,
    progress,
)
from protein_lm.errors import ConfigError

OutputFasta = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FASTA",
        help="File to make: .fasta, .fa or .faa, also with .gz; - for standard output.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(metavar="T", help="Temperature: below 1 sharper, above 1 more diverse; 0 takes the most probable."),
]
TopK = Annotated[int, typer.Option(metavar="K", help="Draw from the K most probable residues; 0: from all.")]
TopP = Annotated[
    float, typer.Option(metavar="P", help="Draw from the most probable residues that together reach P, 0 to 1.")
]
LettersToDraw = Annotated[str, typer.Option("--residues", metavar="LETTERS", help="Residues that may be drawn.")]


@app.command(epilog="Example: protein-lm generate --model run -n 100 -o generated.fasta --top-p 0.95")
def generate(
    model: ModelName,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, help="Number of sequences to make, for each prefix.")
    ] = 1,
    output: OutputFasta = "-",
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(metavar="F", help="Factor of the log-probabilities of residues that were drawn just before."),
    ] = 1.0,
    repetition_window: Annotated[
        int, typer.Option(metavar="W", help="Number of residues that count as just before.")
    ] = 8,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="RESIDUES",
            help="Start of the sequences: residues, or a FASTA file (its name has a dot or /). None if not given.",
        ),
    ] = "",
    min_length: Annotated[int, typer.Option(min=1, help="Least length of a sequence, in residues.")] = 1,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Length in residues at which a sequence stops, unfinished; the model's window if not given."
        ),
    ] = None,
    residues: LettersToDraw = STANDARD_RESIDUES,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences computed at once; results do not change.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Generate proteins with a causal model; headers have log-likelihood (nats) and perplexity."""
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
    total = number * len(prefixes)
    with new_fasta(output) as write, progress("sequences", total, hidden=output == "-") as show:
        for done, drawn in enumerate(generator.generate(number, prefixes), 1):
            num_unfinished += not drawn.is_finished
            write(drawn.header, decode(drawn.residues))
            if show:
                show(done)
    if output != "-":
        stopped = (
            f", {num_unfinished:,} of them unfinished at {generator.max_length:,} residues" if num_unfinished else ""
        )
        print(f"{output}: {total:,} generated{stopped}")


@app.command(epilog="Example: protein-lm infill templates.fasta --model masked_run -o filled.fasta --steps 8")
def infill(
    templates: Annotated[
        Path, typer.Argument(metavar="FASTA", help="Templates: proteins with _ for each residue to fill in.")
    ],
    model: ModelName,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, help="Number of sequences to make from each template.")
    ] = 1,
    output: OutputFasta = "-",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Passes of the model over each template; one for each residue if not given."),
    ] = None,
    order: Annotated[
        FillingOrder,
        typer.Option(
            help="Residues that are filled in first: those that the model is most confident of, or random ones."
        ),
    ] = FillingOrder.CONFIDENT,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    residues: LettersToDraw = STANDARD_RESIDUES,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Fill in marked residues with a masked model; headers have their pseudo-log-likelihood (nats)."""
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
    total = number * len(to_fill)
    with new_fasta(output) as write, progress("sequences", total, hidden=output == "-") as show:
        for done, sequence in enumerate(filled, 1):
            write(sequence.header, decode(sequence.residues))
            if show:
                show(done)
    if output != "-":
        print(f"{output}: {total:,} filled in")


@app.command(epilog="Example: protein-lm compare generated.fasta --data swissprot -o comparison")
def compare(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Generated proteins, plain or compressed.")],
    corpus: CorpusName,
    output: OutputFolder,
    max_sequences: Annotated[
        int, typer.Option(min=2, help="Most real sequences to draw from the split train.")
    ] = 10000,
    seed: Seed = 0,
    figure_format: FormatOfFigures = FigureFormat.PNG,
) -> None:
    """Compare generated proteins with a training split: lengths, residues, k-mers, low complexity, nearest relatives."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.corpus.clusters import find_mmseqs
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.io.readers import read_records
    from protein_lm.results.compare import write_comparison

    missing = None
    try:
        find_mmseqs()
    except ConfigError as error:
        missing = error
    table = write_comparison(
        list(read_records(fasta)),
        open_corpus(corpus),
        output,
        max_sequences=max_sequences,
        seed=seed,
        with_relatives=missing is None,
        figure_format=f".{figure_format.value}",
    )
    if missing:
        print(f"without nearest relatives: {missing}", file=sys.stderr)
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
