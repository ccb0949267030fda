"""The command line: parse, call one function, print. Heavy imports stand inside the verbs, so that help is quick."""

import gc
import os
import sys
from collections.abc import Sequence

import typer

from protein_lm.cli.app import app
from protein_lm.cli.contacts import contacts as contact_verbs
from protein_lm.cli.data import data as data_verbs
from protein_lm.errors import ProteinLMError

from protein_lm.cli import training, inference, variants, generation, embedding, attention, analysis, conversion, models  # noqa: F401  # isort: skip
from protein_lm.cli import similarity, report, kernels  # noqa: F401  # isort: skip

_USER_ERROR = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141

app.add_typer(data_verbs, name="data")
app.add_typer(contact_verbs, name="contacts")


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
    if arguments is None:
        gc.freeze()  # the process ends: its last collection need not look at all that there is
    if status == _INTERRUPTED:  # some versions of Typer catch Ctrl-C themselves
        _report("interrupted")
    return status


def _report(message: str) -> int:
    print("protein-lm: error:", " ".join(message.split()), file=sys.stderr)
    return _USER_ERROR
