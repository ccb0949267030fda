"""The command line: parse, call one function, print. Heavy imports stand inside the verbs, so that help is quick."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import FigureFormat, LongPolicy, OnError
from protein_lm.errors import ProteinLMError

_USER_ERROR = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141

app = typer.Typer(
    help="Train protein language models with linear attention, score with them, look inside them.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Prepare sequences for training, and look at what was prepared.")
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
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens computed at once; memory against speed, same results.")]


@data.command("prepare", epilog="Example: protein-lm data prepare uniprot_sprot.fasta.gz -o swissprot --min-length 30")
def prepare_data(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="FASTA, UniProtKB .dat, UniProtKB or UniRef XML, CSV, TSV or Parquet; plain, .gz, .xz or .zst; folders of "
            "these; - for standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="Folder to make.")],
    residues: Annotated[
        ResiduePolicy,
        typer.Option(
            help="What happens to B, J, O, U, X, Z: keep the letter (J becomes X), make it X, drop the sequence, stop."
        ),
    ] = ResiduePolicy.KEEP,
    on_error: Annotated[
        OnError, typer.Option(help="A record at fault stops the command, or is skipped and counted.")
    ] = OnError.STOP,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    valid_fraction: Annotated[float, typer.Option(help="Fraction of sequences for validation.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Fraction of sequences for the test.")] = 0.05,
    split_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TSV or CSV with columns sequence_id and split (train, valid, test, held_out, or empty: by hash).",
        ),
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TSV or CSV with columns sequence_id and cluster_id, or MMseqs2's: clusters are split, not sequences.",
        ),
    ] = None,
    min_length: Annotated[int, typer.Option(help="Drop shorter sequences (residues).")] = 1,
    max_length: Annotated[int | None, typer.Option(help="Drop longer sequences (residues).")] = None,
    drop_fragments: Annotated[
        bool, typer.Option("--drop-fragments", help="Drop what is marked as a fragment.")
    ] = False,
    taxon_ids: Annotated[
        list[int] | None,
        typer.Option("--taxon", metavar="ID", help="Keep only this NCBI taxonomy identifier. Repeatable."),
    ] = None,
    min_cluster_size: Annotated[int, typer.Option(help="Drop UniRef clusters of fewer members.")] = 0,
    protein_existence: Annotated[
        list[int] | None,
        typer.Option(metavar="LEVEL", help="Keep only this level of evidence, 1 to 5. Repeatable."),
    ] = None,
) -> None:
    """Read sequence files, filter, drop duplicates, split, and write a token store for training."""
    from protein_lm.data.filters import Filters
    from protein_lm.data.prepare import prepare
    from protein_lm.data.sources import sequence_files

    files, ignored = sequence_files(sources)
    if ignored:
        print(f"not read, by their suffix: {', '.join(map(str, ignored))}", file=sys.stderr)
    with _progress("reading", files) as on_progress:
        manifest = prepare(
            files,
            output,
            policy=residues,
            on_error=on_error,
            seed=seed,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            split_table=split_table,
            clusters=clusters,
            filters=Filters(
                min_length=min_length,
                max_length=max_length,
                drop_fragments=drop_fragments,
                taxon_ids=frozenset(taxon_ids or ()),
                min_cluster_size=min_cluster_size,
                protein_existence=frozenset(protein_existence or ()),
            ),
            on_progress=on_progress,
        )
    dropped = {name.replace("_", " "): count for name, count in manifest["num_dropped"].items() if count}
    listed = f" ({', '.join(f'{name} {count:,}' for name, count in dropped.items())})" if dropped else ""
    print(
        f"{output}: {manifest['num_sequences']:,} sequences, {manifest['num_residues']:,} residues; "
        f"{sum(dropped.values()):,} dropped{listed}"
    )


@data.command("inspect", epilog="Example: protein-lm data inspect swissprot")
def inspect_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what a token store holds, and how long its sequences are."""
    from protein_lm.data.inspect import measure, report
    from protein_lm.data.store import TokenStore

    opened = TokenStore.open(store)
    if json:
        from json import dumps

        print(dumps(opened.manifest, indent=2))
        return
    from rich.console import Console

    Console(highlight=False, markup=False, soft_wrap=True).print(*report(opened, measure(opened)), sep="\n")


@data.command("cluster", epilog="Example: protein-lm data cluster swissprot -o clusters.tsv --identity 0.5")
def cluster_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TABLE", help=".tsv to make.")],
    identity: Annotated[float, typer.Option(help="Least share of residues identical with the representative.")] = 0.5,
    coverage: Annotated[float, typer.Option(help="Least share of a member in the alignment.")] = 0.8,
    threads: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
) -> None:
    """Cluster a token store with MMseqs2, for `data prepare --clusters`."""
    from protein_lm.data.clusters import cluster
    from protein_lm.data.store import TokenStore

    opened = TokenStore.open(store)
    number = cluster(opened, output, identity=identity, coverage=coverage, threads=threads)
    print(f"{output}: {opened.num_sequences:,} sequences in {number:,} clusters")


@data.command("leakage", epilog="Example: protein-lm data leakage swissprot")
def leakage_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output.")
    ] = "-",
    threads: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
) -> None:
    """Search what is kept back against what is trained on (MMseqs2): shares with relatives of 30, 50, 90 % identity."""
    from protein_lm.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.data.clusters import leakage
    from protein_lm.data.store import TokenStore

    write_table(leakage(TokenStore.open(store), threads=threads), output)


@data.command("verify", epilog="Example: protein-lm data verify swissprot")
def verify_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
) -> None:
    """Check every file of a token store against its checksum."""
    from protein_lm.data.store import ARRAYS, TokenStore
    from protein_lm.data.verify import verify

    opened = TokenStore.open(store)
    with _progress("checking", [store / name for name in ARRAYS]) as on_progress:
        num_bytes = verify(opened, on_progress)
    print(f"{store}: {opened.num_sequences:,} sequences, {num_bytes:,} bytes as they were written")


@data.command("export", epilog="Example: protein-lm data export swissprot -o train.fasta.gz --split train")
def export_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".fasta, .fa, .faa, these with .gz, or .parquet.")
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="SPLIT", help="train, valid, test or held_out. Repeatable; all if none."),
    ] = None,
) -> None:
    """Write the sequences of a token store as FASTA or as a table."""
    from protein_lm.data.export import export
    from protein_lm.data.split import Split, parse_split
    from protein_lm.data.store import TokenStore

    number = export(TokenStore.open(store), output, splits=[parse_split(name) for name in splits or ()] or list(Split))
    print(f"{output}: {number:,} sequences")


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
) -> None:
    """Train a model; also under `accelerate launch -m protein_lm train ...`."""
    from protein_lm.config import load_recipe

    loaded = load_recipe(recipe, overrides)

    from protein_lm.data.store import TokenStore
    from protein_lm.results import write_learning_curve
    from protein_lm.training.trainer import Trainer

    trainer = Trainer(loaded, TokenStore.open(store), output, resume=resume, initial=initial)
    progress = trainer.fit()
    if trainer.accelerator.is_main_process:
        figure = write_learning_curve(output)
        print(f"{output}: {progress.step:,} steps, {progress.num_tokens:,} tokens; models best and last, {figure.name}")


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
    from protein_lm.data.store import TokenStore

    table = evaluate(
        load_model(model, device=device),
        TokenStore.open(store),
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
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="attention=KIND and other settings of the kind. Repeatable."),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed of random features and trainable kernels.")] = 0,
) -> None:
    """The same weights under another kind of attention, to fine-tune with `train --init`; not a model to use as it is."""
    from protein_lm.output import check_absent

    check_absent(output)

    from protein_lm.checkpoint import load_model, save_model
    from protein_lm.config import parse_settings
    from protein_lm.model.conversion import with_attention

    opened = load_model(model)
    converted = with_attention(opened, seed=seed, **parse_settings(settings))
    save_model(converted, output, facts={"weights_from": f"{model} ({opened.config.attention_name} attention)"})
    print(f"{output}: {converted.config.attention_name} attention with the weights of {model}; fine-tune it before use")


@app.command(epilog="Example: protein-lm info run")
def info(model: Annotated[str, typer.Argument(metavar="M", help="Model directory, or a run directory.")]) -> None:
    """Show what a model directory holds."""
    from protein_lm.checkpoint import describe

    print(describe(model))


def _tell_dropped(identifiers: Sequence[str]) -> None:
    if identifiers:
        shown = ", ".join(identifiers[:5]) + (", ..." if len(identifiers) > 5 else "")
        print(f"{len(identifiers):,} over the model's window left out: {shown}", file=sys.stderr)


@contextmanager
def _progress(label: str, files: Sequence[Path]) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error for the bytes read of some files; None where no person looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    total = sum(file.stat().st_size for file in files if file.is_file())
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.update(task, completed=done)
