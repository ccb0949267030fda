"""The verb that writes embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import EmbeddingFormat, ReadingLongPolicy, StorageType
from protein_lm.cli.app import app
from protein_lm.cli.options import (
    BatchTokens,
    Device,
    ModelName,
    ReadingLong,
    Resume,
    SequenceSource,
    sequence_progress,
    tell_long,
)


@app.command(epilog="Example: protein-lm embed proteins.fasta --model run -o embeddings --per-residue --dtype float16")
def embed(
    source: SequenceSource,
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            metavar="N",
            help="0 is the embedding, n comes out of block n, the last has the final norm. Repeatable; the last if none.",
        ),
    ] = None,
    per_residue: Annotated[
        bool, typer.Option("--per-residue", help="Keep every residue's embedding beside the mean over residues.")
    ] = False,
    dtype: Annotated[StorageType, typer.Option(help="Type of the stored numbers.")] = StorageType.FLOAT32,
    form: Annotated[
        EmbeddingFormat,
        typer.Option("--format", help="Shards of tensors, or HDF5 files with a dataset for each sequence."),
    ] = EmbeddingFormat.SAFETENSORS,
    long_sequences: ReadingLong = ReadingLongPolicy.ERROR,
    resume: Resume = False,
    batch_tokens: BatchTokens = 2048,
    device: Device = "auto",
) -> None:
    """Embeddings of proteins and of their residues: the model's hidden states, with an index."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.embed import Storage, embed_file

    with sequence_progress("embedding") as on_progress:
        summary = embed_file(
            load_model(model, device=device),
            source,
            output,
            Storage(layers=layers, per_residue=per_residue, dtype=dtype, format=form),
            long_sequences=long_sequences,
            resume=resume,
            tokens_per_batch=batch_tokens,
            on_progress=on_progress,
        )
    tell_long(summary, long_sequences)
    print(f"{output}: {summary.num_used:,} embedded")
