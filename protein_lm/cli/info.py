"""The verbs that describe models, and publish them: info, push."""

from typing import Annotated

import typer

from protein_lm.cli.app import app
from protein_lm.cli.options import MODEL_HELP


@app.command(epilog="Example: protein-lm info run")
def info(model: Annotated[str | None, typer.Argument(metavar="[M]", help=MODEL_HELP)] = None) -> None:
    """Describe a model. Without a model, describe this installation: its kernels, devices and precision."""
    if model is None:
        from protein_lm.checkpoint.directory import choose_device
        from protein_lm.model.precision import describe
        from protein_lm.native.library import describe_installation

        print(describe_installation())
        for device in dict.fromkeys(["cpu", choose_device("auto").type]):
            print(describe(device))
        return
    from protein_lm.checkpoint.directory import describe

    print(describe(model))


@app.command(epilog="Example: protein-lm push run my-group/my-model --private")
def push(
    model: Annotated[str, typer.Argument(metavar="M", help=MODEL_HELP)],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/MODEL", help="Repository on the Hub; it is made if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a model to the Hugging Face Hub. Every verb opens it there by its name ORG/MODEL."""
    from protein_lm.checkpoint.directory import push_model

    print(push_model(model, repository, private=private))
