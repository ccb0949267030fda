"""The verbs that change model directories, or describe them."""

from pathlib import Path
from typing import Annotated

import typer

from protein_lm.cli.app import app
from protein_lm.cli.options import MODEL_HELP


@app.command(epilog="Example: protein-lm convert run -o performer --set attention=performer-softmax")
def convert(
    model: Annotated[str, typer.Argument(metavar="M", help=MODEL_HELP)],
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
    path = find_model(model)
    opened = load_model(path)
    if merge:
        head = read_head(path, opened.config.width) if "head" in read_facts(path) else None
        save_model(opened, output, facts={"weights_from": model}, head=head)
        print(f"{output}: one model of {opened.num_parameters:,} weights, which stands on no other")
        return
    converted = with_attention(opened, seed=seed, **parse_settings(settings or []))
    save_model(converted, output, facts={"weights_from": f"{model} ({opened.config.attention_name} attention)"})
    print(f"{output}: {converted.config.attention_name} attention with the weights of {model}; fine-tune it before use")


@app.command(epilog="Example: protein-lm info run")
def info(model: Annotated[str, typer.Argument(metavar="M", help=MODEL_HELP)]) -> None:
    """Show what a model directory holds."""
    from protein_lm.checkpoint import describe

    print(describe(model))


@app.command(epilog="Example: protein-lm push run my-group/my-model --private")
def push(
    model: Annotated[str, typer.Argument(metavar="M", help=MODEL_HELP)],
    repository: Annotated[str, typer.Argument(metavar="ORG/MODEL", help="Repository on the Hub; made if not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
) -> None:
    """Put a model on the Hugging Face Hub, where its name stands for it in every verb."""
    from protein_lm.checkpoint import push_model

    print(push_model(model, repository, private=private))
