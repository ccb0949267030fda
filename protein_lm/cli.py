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


@data.command("prepare", epilog="Example: protein-lm data prepare uniprot_sprot.fasta.gz -o swissprot --min-length 30")
def prepare_data(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="FASTA files, plain or gzip.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="Folder to make.")],
    residues: Annotated[
        ResiduePolicy,
        typer.Option(
            help="What happens to B, J, O, U, X, Z: keep the letter (J becomes X), make it X, drop the sequence, stop."
        ),
    ] = ResiduePolicy.KEEP,
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
    min_length: Annotated[int, typer.Option(help="Drop shorter sequences (residues).")] = 1,
    max_length: Annotated[int | None, typer.Option(help="Drop longer sequences (residues).")] = None,
) -> None:
    """Read FASTA files, drop duplicates, split, and write a token store for training."""
    from protein_lm.data.prepare import prepare

    with _progress("reading", sources) as on_progress:
        manifest = prepare(
            sources,
            output,
            policy=residues,
            seed=seed,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            split_table=split_table,
            min_length=min_length,
            max_length=max_length,
            on_progress=on_progress,
        )
    dropped = sum(manifest["num_dropped"].values())
    print(
        f"{output}: {manifest['num_sequences']:,} sequences, {manifest['num_residues']:,} residues; {dropped:,} dropped"
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
