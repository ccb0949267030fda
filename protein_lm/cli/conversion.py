"""The verb that makes a model directory of another: of ESM-2, or of one with other attention or with adapters."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protein_lm.choices import OutputHead
from protein_lm.cli.app import app
from protein_lm.cli.options import MODEL_HELP, bytes_progress

if TYPE_CHECKING:
    from protein_lm.model.language_model import ProteinLM


@app.command(epilog="Example: protein-lm convert run -o swapped --set attention=hedgehog --calibrate proteins.fasta")
def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="M",
            help=MODEL_HELP
            + " Or ESM-2: a .pt file of fair-esm, a Hugging Face directory, or the name of a release, such as "
            "esm2_t6_8M_UR50D, to download.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Model directory to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="attention=KIND and other settings of the kind. Repeatable."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="SOURCE",
            help="FASTA file or prepared corpus: fit each layer to its former attention on these proteins, and measure.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep what --calibrate finds worse than uniform attention.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="ESM-2 of fair-esm: run fair-esm's own model too, and print how far logits differ."
        ),
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Make base and adapters one model, and nothing else.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of random features, trainable kernels, and the draw of proteins.")
    ] = 0,
) -> None:
    """ESM-2 as a model directory; the same weights under another kind of attention; or adapters made part of them."""
    from protein_lm.files.output import check_absent

    check_absent(output)
    _check_options(settings=settings, source=source, force=force, verify=verify, merge=merge)
    if merge:
        _merge(model, output)
        return

    from protein_lm.checkpoint.directory import load_model, save_model
    from protein_lm.interop.reading import is_file_of_others
    from protein_lm.model.conversion import parse_settings, with_attention

    path = _fetched(model)
    if verify or is_file_of_others(path):
        parsed = parse_settings(settings) if settings else None
        opened, remarks = _read_esm2(path, verify=verify)
    else:
        _check_name(model, has_settings=bool(settings))
        parsed = parse_settings(settings or [])
        opened, remarks = load_model(model), []
    facts: dict[str, Any] = {"weights_from": f"{model} ({opened.config.attention_name} attention)"}
    result = opened if parsed is None else with_attention(opened, attention=parsed, seed=seed)
    if source:
        facts |= _calibrate(opened, result, source, seed=seed, force=force)
    save_model(result, output, facts=facts)
    print(f"{output}: {result.config.attention_name} attention with the weights of {model} ({result.num_parameters:,})")
    for remark in remarks:
        print(f"  {remark}")
    if parsed is not None:
        has_head = result.config.output_head is not OutputHead.NONE
        verb = "train RECIPE --data STORE" if has_head else "finetune RECIPE --data TABLE"
        print(f"  fine-tune it before use, for example with: protein-lm {verb} --init {output}")
        if not source:
            print("  how near its attention is to what it was, --calibrate SOURCE measures and improves")


def _check_options(*, settings: list[str] | None, source: Path | None, force: bool, verify: bool, merge: bool) -> None:
    """Refuse options that do not go together."""
    from protein_lm.errors import ConfigError

    if merge and (settings or source):
        raise ConfigError("--merge changes no kind of attention; convert its result with --set afterwards")
    if merge and verify:
        raise ConfigError("--verify compares ESM-2 with fair-esm's own model; leave it out with --merge")
    if source and not settings:
        raise ConfigError(
            "--calibrate fits new attention to the former; add --set attention=KIND, for example hedgehog"
        )
    if force and not source:
        raise ConfigError("--force keeps what --calibrate refuses; give --calibrate SOURCE, or leave it out")


def _read_esm2(path: Path, *, verify: bool) -> "tuple[ProteinLM, list[str]]":
    """The model in files of fair-esm or Hugging Face, and remarks on it, after a comparison if that is wanted."""
    from protein_lm.errors import ConfigError
    from protein_lm.interop import verification
    from protein_lm.interop.reading import read_esm2

    if verify and not path.is_file():
        raise ConfigError(f"--verify compares with fair-esm's own model; {path} is none: give a .pt file or a release")
    model, remarks = read_esm2(path)
    return model, [*remarks, verification.verify(path, model)] if verify else remarks


def _merge(model: str, output: Path) -> None:
    from protein_lm.checkpoint.config_file import read_facts
    from protein_lm.checkpoint.directory import find_model, load_model, save_model
    from protein_lm.checkpoint.weights import read_head

    path = find_model(model)
    opened = load_model(path)
    head = read_head(path, opened.config.width) if "head" in read_facts(path) else None
    save_model(opened, output, facts={"weights_from": model}, head=head)
    print(f"{output}: one model of {opened.num_parameters:,} weights, which stands on no other")


def _fetched(model: str) -> Path:
    """Where a model lies: a released one is downloaded unless it is there."""
    from protein_lm.checkpoint.foreign import RELEASES, as_path
    from protein_lm.errors import ModelError
    from protein_lm.interop.esm_release import fetch_release

    path = as_path(model)
    if path.exists() or not model.startswith("esm2_"):
        return path
    if model not in RELEASES:
        raise ModelError(
            f"{model}: neither a file or directory nor a release of ESM-2; these are {', '.join(RELEASES)}"
        )
    return fetch_release(model, bytes_progress)


def _check_name(model: str, *, has_settings: bool) -> None:
    """Refuse what no model is behind. One on the Hub is fetched later, if it is said what should become of it."""
    from protein_lm.checkpoint.directory import find_model
    from protein_lm.checkpoint.foreign import describe, download_command
    from protein_lm.checkpoint.hub import is_hub_name
    from protein_lm.errors import ModelError

    if Path(model).exists() or not is_hub_name(model) or describe(model) is not None:
        find_model(model)
    elif not has_settings:
        raise ModelError(
            f"{model}: no such model directory or run, nor a file of ESM-2; a repository of the Hub is downloaded with: "
            f"{download_command(model)}; of a protein_lm model there, --set says what should become of it"
        )


def _calibrate(original: "ProteinLM", result: "ProteinLM", source: Path, *, seed: int, force: bool) -> dict[str, Any]:
    """Adapt `result`, print what came of it, and refuse what is of no use; facts for the model's card."""
    from protein_lm.analysis.calibration import MOST_TOKENS, NUM_SEQUENCES, calibrate, describe, worse_than_uniform
    from protein_lm.analysis.draw import draw_sequences
    from protein_lm.errors import ModelError

    longest = min(original.max_residues, MOST_TOKENS - 2)
    sequences = draw_sequences(source, NUM_SEQUENCES, longest=longest, seed=seed)
    with _layers_progress(original.config.num_layers) as on_layer:
        table = calibrate(original, result, sequences, seed=seed, on_layer=on_layer)
    print(describe(table))
    if (worse := worse_than_uniform(table)) and not force:
        raise ModelError(
            f"in layer {', '.join(map(str, worse))} the new attention is farther from the former than uniform "
            "attention, and nothing was written; choose another kind or more features, or add --force and train on"
        )
    return {
        "calibrated_on": f"{len(sequences)} proteins of {source}",
        "output_errors_of_layers": [round(error, 4) for error in table["output_error"]],
        "output_errors_of_uniform_attention": [round(error, 4) for error in table["output_error_uniform"]],
    }


@contextmanager
def _layers_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of layers on a terminal, a line for each elsewhere; on standard error."""
    if not sys.stderr.isatty():
        yield lambda done: print(f"calibrated layer {done} of {total}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("calibrating layers", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total)
        yield lambda done: bars.update(task, completed=done)
