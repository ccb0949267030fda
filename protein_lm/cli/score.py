"""The verbs that compute something for each protein or split: evaluate, score, embed, predict."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import EmbeddingFormat, Estimate, LongPolicy, ReadingLongPolicy, StorageType
from protein_lm.cli.app import app
from protein_lm.cli.options import (
    BatchTokens,
    CorpusName,
    Device,
    ModelName,
    OutputFolder,
    OutputTable,
    ReadingLong,
    Resume,
    SequenceSource,
    progress,
    tell_dropped,
    tell_long,
)


@app.command(epilog="Example: protein-lm evaluate --model run --data swissprot --split test --split held_out")
def evaluate(
    model: ModelName,
    corpus: CorpusName,
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Split to measure: train, valid, test or held_out. Repeatable; all but train if not given.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="TABLE",
            help="Table to make: .csv, .tsv or .parquet; - for CSV on output. If not given, only a summary is printed.",
        ),
    ] = None,
    long_sequences: Annotated[
        LongPolicy,
        typer.Option(
            "--long", help="Sequences over the model's window: stop (error), crop to the first residues, or drop."
        ),
    ] = LongPolicy.ERROR,
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Most sequences of each split, the first ones; all if not given.")
    ] = None,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Measure accuracy and perplexity per residue on each split of a corpus, next to the unigram baseline."""
    from protein_lm.corpus.split import parse_split
    from protein_lm.files.tables import check_table_output, write_table

    chosen = [parse_split(name) for name in splits or ("valid", "test", "held_out")]
    if output:
        check_table_output(output)

    from protein_lm.analysis.evaluation import describe, evaluate
    from protein_lm.checkpoint.directory import load_model
    from protein_lm.corpus.joined import open_corpus

    table = evaluate(
        load_model(model, device=device),
        open_corpus(corpus),
        splits=chosen,
        long_sequences=long_sequences,
        max_sequences=max_sequences,
        tokens_per_batch=batch_tokens,
    )
    if output:
        write_table(table, output)
    if output != "-":
        print(describe(table))


@app.command(epilog="Example: protein-lm score proteins.fasta --model run -o scores.csv --per-residue residues.parquet")
def score(
    source: SequenceSource,
    model: ModelName,
    output: OutputTable = "-",
    per_residue: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Second table to make, with a row for each residue.")
    ] = None,
    estimate: Annotated[
        Estimate,
        typer.Option(
            help="Masked models: hide each residue in turn (exact), or read each protein once with none hidden (one-pass; "
            "its columns have other names)."
        ),
    ] = Estimate.EXACT,
    num_draws: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Draws of the random features: give mean and standard error over N of them. If not given, the model's own "
            "features are used.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first draw; the next draws have the next seeds.")] = 0,
    long_sequences: ReadingLong = ReadingLongPolicy.ERROR,
    resume: Resume = False,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Score proteins: log-likelihood of a causal model, pseudo-log-likelihood of a masked model, in nats."""
    from protein_lm.results.score import check_outputs

    check_outputs(output, per_residue, resume=resume)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.inference.score import Scoring
    from protein_lm.results.score import score_file

    with progress("scoring") as on_progress:
        summary = score_file(
            load_model(model, device=device),
            source,
            output,
            Scoring(estimate=estimate, num_draws=num_draws, seed=seed, tokens_per_batch=batch_tokens),
            long_sequences=long_sequences,
            residue_output=per_residue,
            resume=resume,
            on_progress=on_progress,
        )
    tell_long(summary, long_sequences)
    if output != "-":
        print(f"{output}: {summary.num_used:,} scored")


@app.command(epilog="Example: protein-lm embed proteins.fasta --model run -o embeddings --per-residue --dtype float16")
def embed(
    source: SequenceSource,
    model: ModelName,
    output: OutputFolder,
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            metavar="N",
            help="Layer to write: 0 is the embedding, N the output of layer N; that of the last layer has the final norm. "
            "Repeatable; the last layer if not given.",
        ),
    ] = None,
    per_residue: Annotated[
        bool, typer.Option("--per-residue", help="Write each residue's embedding as well as the mean over residues.")
    ] = False,
    dtype: Annotated[StorageType, typer.Option(help="Type of the stored numbers.")] = StorageType.FLOAT32,
    form: Annotated[
        EmbeddingFormat,
        typer.Option(
            "--format", help="Format of the files: shards of tensors, or HDF5 with a dataset for each sequence."
        ),
    ] = EmbeddingFormat.SAFETENSORS,
    long_sequences: ReadingLong = ReadingLongPolicy.ERROR,
    resume: Resume = False,
    batch_tokens: BatchTokens = 2048,
    device: Device = "auto",
) -> None:
    """Embed proteins: write the model's hidden states, averaged over residues or for each residue, with an index."""
    from protein_lm.files.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.results.embed import Storage, embed_file

    with progress("embedding") as on_progress:
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


@app.command(epilog="Example: protein-lm predict proteins.fasta --model tuned -o predictions.csv")
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Proteins: a sequence file, or a .csv, .tsv or .parquet with the column sequence."
        ),
    ],
    model: ModelName,
    output: OutputTable = "-",
    long_sequences: Annotated[
        LongPolicy, typer.Option("--long", help="Sequences over the model's window: stop (error), or leave out (drop).")
    ] = LongPolicy.ERROR,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Predict labels of proteins or of their residues, with a model made by `finetune`."""
    from protein_lm.files.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.checkpoint.directory import load_predictor
    from protein_lm.inference.predict import prediction_table, read_sequences

    opened = load_predictor(model, device=device)
    identifiers, sequences, dropped = read_sequences(
        source, max_residues=opened.backbone.max_residues, long_sequences=long_sequences
    )
    write_table(prediction_table(opened, identifiers, sequences, tokens_per_batch=batch_tokens), output)
    tell_dropped(dropped)
    if output != "-":
        print(f"{output}: {len(sequences):,} sequences predicted")
