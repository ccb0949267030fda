"""The verb that converts models: from ESM-2, to another kind of attention, or with adapters merged: convert."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protein_lm.choices import OutputHead
from protein_lm.cli.app import app
from protein_lm.cli.options import MODEL_HELP, bytes_progress, progress

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
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Setting to change: attention=KIND, or one of the kind. Repeatable."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="SOURCE",
            help="Proteins to calibrate on: a sequence file or a corpus. Each layer is fitted to its former attention, and "
            "its error is measured.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the model even if --calibrate finds it worse than uniform attention.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run fair-esm's own model too, and print the largest difference of the logits."),
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapters into the base model.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of random features, trainable kernels and the draw of proteins.")
    ] = 0,
) -> None:
    """Convert a model: read ESM-2, exchange the kind of attention under the same weights, or merge adapters."""
    from protein_lm.files.output import check_absent

    check_absent(output)
    _check_options(settings=settings, source=source, force=force, verify=verify, merge=merge)
    if merge:
        _merge(model, output)
        return

    from protein_lm.checkpoint.directory import load_model, save_model
    from protein_lm.interop.esm_directory import is_file_of_others
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
        verb = "train RECIPE --data CORPUS" if has_head else "finetune RECIPE --data TABLE"
        print(f"  fine-tune it before use, for example with: protein-lm {verb} --init {output}")
        if not source:
            print("  --calibrate SOURCE measures how near its attention is to the former one, and improves it")


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
    from protein_lm.interop.esm_directory import read_esm2

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
    """Return the path of a model; a release of ESM-2 is downloaded unless it is there."""
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
    """Refuse a name without a model. A model on the Hub is fetched later, if there are settings to change."""
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
    """Adapt `result`, print its errors, and refuse a model worse than uniform attention; return facts for its card."""
    from protein_lm.analysis.calibration import MOST_TOKENS, NUM_SEQUENCES, calibrate, describe, worse_than_uniform
    from protein_lm.analysis.protein_sample import draw_sequences
    from protein_lm.errors import ModelError

    longest = min(original.max_residues, MOST_TOKENS - 2)
    sequences = draw_sequences(source, NUM_SEQUENCES, longest=longest, seed=seed)
    total = original.config.num_layers
    with progress("calibrating layers", total) as show:

        def tell_layer(done: int) -> None:
            print(f"calibrated layer {done} of {total}", file=sys.stderr, flush=True)

        table = calibrate(original, result, sequences, seed=seed, on_layer=show or tell_layer)
    print(describe(table))
    if (worse := worse_than_uniform(table)) and not force:
        raise ModelError(
            f"in layer {', '.join(map(str, worse))} the new attention is farther from the former than uniform attention, and "
            "nothing was written; choose another kind or more features, or add --force and train on"
        )
    return {
        "calibrated_on": f"{len(sequences)} proteins of {source}",
        "output_errors_of_layers": [round(error, 4) for error in table["output_error"]],
        "output_errors_of_uniform_attention": [round(error, 4) for error in table["output_error_uniform"]],
    }
