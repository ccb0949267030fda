"""The verbs that ask a model about proteins."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.choices import Estimate, LongPolicy, ReadingLongPolicy
from protein_lm.cli.app import app
from protein_lm.cli.options import (
    BatchTokens,
    Device,
    ModelName,
    ReadingLong,
    Resume,
    SequenceSource,
    sequence_progress,
    tell_dropped,
    tell_long,
)


@app.command(epilog="Example: protein-lm evaluate --model run --data swissprot --split test --split held_out")
def evaluate(
    model: ModelName,
    store: Annotated[Path, typer.Option("--data", metavar="STORE", help="Folder made by data prepare.")],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split", metavar="SPLIT", help="train, valid, test or held_out. Repeatable; all but train if none."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output.")
    ] = None,
    long_sequences: Annotated[
        LongPolicy, typer.Option("--long", help="Sequences over the model's window: stop, crop to the start, or drop.")
    ] = LongPolicy.ERROR,
    max_sequences: Annotated[int | None, typer.Option(min=1, help="Only the first so many of each split.")] = None,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Accuracy and perplexity per residue, split by split, beside the unigram baseline."""
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
        open_corpus(store),
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
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output.")
    ] = "-",
    per_residue: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="A second table, with a row for each residue.")
    ] = None,
    estimate: Annotated[
        Estimate,
        typer.Option(
            help="Masked models: hide each residue in turn (exact), or none of them, once (one-pass; in columns of another "
            "name)."
        ),
    ] = Estimate.EXACT,
    num_draws: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Mean and standard error over N draws of the random features, not the model's own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first draw; the next ones have the next seeds.")] = 0,
    long_sequences: ReadingLong = ReadingLongPolicy.ERROR,
    resume: Resume = False,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """How probable the model finds each protein: log-likelihood (causal) or pseudo-log-likelihood (masked)."""
    from protein_lm.results.score import check_outputs

    check_outputs(output, per_residue, resume=resume)

    from protein_lm.checkpoint.directory import load_model
    from protein_lm.inference.score import Scoring
    from protein_lm.results.score import score_file

    with sequence_progress("scoring") as on_progress:
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


@app.command(epilog="Example: protein-lm predict proteins.fasta --model tuned -o predictions.csv")
def predict(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Proteins, or a .csv, .tsv, .parquet with the column sequence.")
    ],
    model: ModelName,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output.")
    ] = "-",
    long_sequences: Annotated[
        LongPolicy, typer.Option("--long", help="Sequences over the model's window: stop (error) or drop.")
    ] = LongPolicy.ERROR,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """What a model made by `finetune` predicts of each protein, or of each of its residues."""
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
