"""The command line: parse, call one function, print. Heavy imports stand inside the verbs, so that help is quick."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from protein_lm import __version__
from protein_lm.choices import CurveAxis, CurveMetric, FigureFormat, LongPolicy
from protein_lm.cli_data import data
from protein_lm.errors import ConfigError, OutputError, ProteinLMError

_USER_ERROR = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141

app = typer.Typer(
    help="Train protein language models with linear attention, score with them, look inside them.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data, name="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 2, with one line on standard error, for what a user can mend."""
    try:
        status = app(arguments, prog_name="protein-lm", standalone_mode=False) or 0
    except ProteinLMError as error:
        return _report(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:  # whoever read our output, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        # Wrong usage. Typer carries a click of its own or not, depending on its version, hence no class to name.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "protein-lm"
        return _report(f"{format_message().rstrip('.')}; see {command} --help")
    if status == _INTERRUPTED:  # some versions of Typer catch Ctrl-C themselves
        _report("interrupted")
    return status


def _report(message: str) -> int:
    print("protein-lm: error:", " ".join(message.split()), file=sys.stderr)
    return _USER_ERROR


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"protein-lm {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


ModelName = Annotated[
    str, typer.Option("--model", "-m", metavar="M", help="Model directory, or a run directory (its best model).")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, mps, or auto.")]
AllowedChanges = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="With --resume, a key that may be another now. Repeatable."),
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once; memory against speed, same results.")]


@app.command(epilog="Example: protein-lm train scripts/recipes/tiny.yaml --data swissprot -o run --set training.seed=1")
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file with the parts model, data, training.")],
    store: Annotated[Path, typer.Option("--data", metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run directory to make.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    initial: Annotated[
        str | None,
        typer.Option("--init", metavar="M", help="Start from the weights of a model like the recipe's."),
    ] = None,
    allowed_changes: AllowedChanges = None,
) -> None:
    """Train a model; also under `accelerate launch -m protein_lm train ...`."""
    from protein_lm.config import load_recipe

    loaded = load_recipe(recipe, overrides)

    from protein_lm.data.joined import open_corpus
    from protein_lm.results import write_learning_curve
    from protein_lm.training.trainer import Trainer

    corpus = open_corpus(store)
    trainer = Trainer(loaded, corpus, output, resume=resume, initial=initial, allowed_changes=allowed_changes or ())
    progress = trainer.fit()
    if not trainer.accelerator.is_main_process or _tell_stopped(output, progress.step, loaded.training.num_steps):
        return
    figure = write_learning_curve(output)
    print(f"{output}: {progress.step:,} steps, {progress.num_tokens:,} tokens; models best and last, {figure.name}")


@app.command(epilog="Example: protein-lm curves runs/* -o curves.png --metric accuracy --against num_tokens")
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Figure: .png, .svg, .pdf. Table: .csv, .tsv, .parquet."),
    ],
    metric: Annotated[
        CurveMetric | None, typer.Option(help="What the figure shows; perplexity if not given.", show_default=False)
    ] = None,
    against: Annotated[
        CurveAxis | None, typer.Option(help="Its horizontal axis; step if not given.", show_default=False)
    ] = None,
) -> None:
    """Learning curves of runs, in one figure or one table."""
    from protein_lm.output import check_absent
    from protein_lm.tables import SUFFIXES, write_table

    draws = output.suffix in [f".{each.value}" for each in FigureFormat]
    if not draws and output.suffix not in SUFFIXES:
        raise OutputError(
            f"{output}: unknown format; end it in .png, .svg or .pdf for a figure, {', '.join(SUFFIXES)} for a table"
        )
    if not draws and (metric or against):
        raise ConfigError(
            f"{output}: a table has every column; leave out --metric and --against, or draw a figure (.png)"
        )
    check_absent(output)

    from protein_lm.analysis.curves import check_column, learning_curves

    table = learning_curves(runs)
    if not draws:
        write_table(table, str(output))
    else:
        from protein_lm.plots import compare_runs, save_figure

        metric, against = metric or CurveMetric.PERPLEXITY, against or CurveAxis.STEP
        for column in (metric.value, against.value):
            check_column(table, column)
        save_figure(compare_runs(table, metric=metric.value, against=against.value), output)
    print(f"{output}: {len(table):,} rows of {table['run'].nunique()} runs")


@app.command(
    epilog="Example: protein-lm finetune scripts/recipes/finetune.yaml --data labels.csv --init run -o tuned "
    "--set head.task=classification"
)
def finetune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file with the parts head, data, training.")],
    table: Annotated[
        Path,
        typer.Option("--data", metavar="TABLE", help=".csv, .tsv or .parquet: sequence, label; sequence_id, split."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run directory to make.")],
    initial: Annotated[
        str | None, typer.Option("--init", metavar="M", help="Model directory or run that the head is put on.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    allowed_changes: AllowedChanges = None,
) -> None:
    """Train a model to predict labels of sequences or residues: its head alone, adapters, or all of it."""
    from protein_lm.checkpoint import find_model, read_config
    from protein_lm.config import load_fine_tuning_recipe
    from protein_lm.errors import ConfigError, OutputError
    from protein_lm.training.checkpoints import Checkpoints

    if initial is None and not resume:
        raise ConfigError("fine-tuning starts from a model; name it with --init")
    sources = Checkpoints(output).newest_first() if initial is None else [find_model(initial)]
    if not sources:
        raise OutputError(f"{output}: nothing to resume, there is no checkpoint in it; start without --resume")
    loaded = load_fine_tuning_recipe(recipe, overrides, model=read_config(sources[0]))

    from protein_lm.results import write_fine_tuning
    from protein_lm.training.fine_tuner import FineTuner

    tuner = FineTuner(loaded, table, output, resume=resume, initial=initial, allowed_changes=allowed_changes or ())
    progress = tuner.fit()
    if not tuner.accelerator.is_main_process or _tell_stopped(output, progress.step, loaded.training.num_steps):
        return
    evaluation = tuner.evaluation()
    write_fine_tuning(output, evaluation)
    print(evaluation.to_string(index=False, float_format="{:.4f}".format, na_rep="not defined"))
    print(f"{output}: {progress.step:,} steps; models best and last, evaluation.csv (of best), learning_curve.png")


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
    from protein_lm.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.checkpoint import load_predictor
    from protein_lm.inference.predict import prediction_table, read_sequences

    opened = load_predictor(model, device=device)
    identifiers, sequences, dropped = read_sequences(
        source, max_residues=opened.backbone.max_residues, long_sequences=long_sequences
    )
    write_table(prediction_table(opened, identifiers, sequences, tokens_per_batch=batch_tokens), output)
    _tell_dropped(dropped)
    if output != "-":
        print(f"{output}: {len(sequences):,} sequences predicted")


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
    from protein_lm.data.split import parse_split
    from protein_lm.tables import check_table_output, write_table

    chosen = [parse_split(name) for name in splits or ("valid", "test", "held_out")]
    if output:
        check_table_output(output)

    from protein_lm.analysis.evaluation import describe, evaluate
    from protein_lm.checkpoint import load_model
    from protein_lm.data.joined import open_corpus

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


@app.command(epilog="Example: protein-lm score proteins.fasta --model run -o scores.csv")
def score(
    fasta: Annotated[Path, typer.Argument(metavar="FASTA", help="Proteins to score, plain or gzip.")],
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
    """How probable the model finds each protein: log-likelihood (causal) or pseudo-log-likelihood (masked)."""
    from protein_lm.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.checkpoint import load_model
    from protein_lm.data.readers import read_records
    from protein_lm.inference.score import score, within_window

    opened = load_model(model, device=device)
    dropped: list[str] = []
    records = within_window(read_records(fasta), opened, long_sequences, dropped)
    table = score(opened, records, tokens_per_batch=batch_tokens)
    write_table(table, output)
    _tell_dropped(dropped)
    if output != "-":
        print(f"{output}: {len(table):,} scored")


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
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figure.")] = FigureFormat.PNG,
    device: Device = "auto",
) -> None:
    """Attention matrices, a table of what each head looks at, and a figure, for each protein; linear kinds too."""
    from protein_lm.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint import load_model
    from protein_lm.data.readers import read_records
    from protein_lm.results import write_attention

    names = write_attention(
        load_model(model, device=device),
        read_records(fasta),
        output,
        layers=[layer - 1 for layer in layers] if layers else None,
        heads=[head - 1 for head in heads] if heads else None,
        figure_format=f".{figure_format.value}",
    )
    print(
        f"{output}: matrices (.npz), head statistics (.csv) and figure (.{figure_format.value}) of {', '.join(names)}"
    )


@app.command(epilog="Example: protein-lm similarity swissprot --model run -o similarity")
def similarity(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="FASTA file, or a folder made by data prepare.")],
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    num_sequences: Annotated[int, typer.Option(min=1, help="Sequences to draw from the source.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that draw.")] = 0,
    figure_format: Annotated[FigureFormat, typer.Option("--format", help="Format of the figure.")] = FigureFormat.PNG,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
) -> None:
    """Which amino acids the model treats alike: 20 × 20 tables and heatmap out of its attention, beside BLOSUM62."""
    from protein_lm.output import check_absent

    check_absent(output)

    from protein_lm.analysis.similarity import draw_sequences, pair_attention
    from protein_lm.checkpoint import load_model
    from protein_lm.results import write_similarity

    opened = load_model(model, device=device)
    sequences, dropped = draw_sequences(source, num_sequences, max_length=opened.max_residues, seed=seed)
    agreements = write_similarity(
        pair_attention(opened, sequences, tokens_per_batch=batch_tokens),
        output,
        figure_format=f".{figure_format.value}",
    )
    _tell_dropped(dropped)
    print(f"{output}: {len(sequences):,} sequences; agreement with BLOSUM62 over pairs of different amino acids")
    for name, value in agreements.items():
        print(
            f"  {name}: Pearson {value.pearson:.3f} (permutation p {value.pearson_p:.4f}), "
            f"Spearman {value.spearman:.3f} (p {value.spearman_p:.4f})"
        )


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
    from protein_lm.output import check_absent

    check_absent(output)

    from protein_lm.analysis import kernel_error as analysis
    from protein_lm.checkpoint import load_model
    from protein_lm.data.readers import read_records
    from protein_lm.results import write_kernel_error

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


@app.command(epilog="Example: protein-lm convert run -o performer --set attention=performer-softmax")
def convert(
    model: Annotated[str, typer.Argument(metavar="M", help="Model directory, or a run directory (its best model).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Model directory to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="attention=KIND and other settings of the kind. Repeatable."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make base and adapters one model, and nothing else.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random features and trainable kernels.")] = 0,
) -> None:
    """The same weights under another kind of attention, to fine-tune with `train --init`; or adapters made part of them."""
    from protein_lm.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint import find_model, load_model, read_facts, read_head, save_model
    from protein_lm.config import parse_settings
    from protein_lm.errors import ConfigError
    from protein_lm.model.conversion import with_attention

    if merge and settings:
        raise ConfigError("--merge changes no kind of attention; convert its result with --set afterwards")
    opened, path = load_model(model), find_model(model)
    if merge:
        head = read_head(path, opened.config.width) if "head" in read_facts(path) else None
        save_model(opened, output, facts={"weights_from": model}, head=head)
        print(f"{output}: one model of {opened.num_parameters:,} weights, which stands on no other")
        return
    converted = with_attention(opened, seed=seed, **parse_settings(settings or []))
    save_model(converted, output, facts={"weights_from": f"{model} ({opened.config.attention_name} attention)"})
    print(f"{output}: {converted.config.attention_name} attention with the weights of {model}; fine-tune it before use")


@app.command(epilog="Example: protein-lm info run")
def info(model: Annotated[str, typer.Argument(metavar="M", help="Model directory, or a run directory.")]) -> None:
    """Show what a model directory holds."""
    from protein_lm.checkpoint import describe

    print(describe(model))


def _tell_stopped(run: Path, step: int, num_steps: int) -> bool:
    """Say so if a run was asked to stop before its last step; whether it was."""
    if step < num_steps:
        print(f"{run}: stopped at step {step:,} of {num_steps:,}; go on with the same command and --resume")
    return step < num_steps


def _tell_dropped(identifiers: Sequence[str]) -> None:
    if identifiers:
        shown = ", ".join(identifiers[:5]) + (", ..." if len(identifiers) > 5 else "")
        print(f"{len(identifiers):,} over the model's window left out: {shown}", file=sys.stderr)
