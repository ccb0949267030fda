"""The command line: each verb parses its options, calls one function and prints.

Heavy imports are inside the verbs, so that help is quick.
"""

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import typer

from protein_lm.cli.app import app
from protein_lm.cli.streams import ClosedPipe, guarded
from protein_lm.errors import ProteinLMError, one_line
from protein_lm.files.output import reason

_VERBS = {
    "data": ["data"],
    "contacts": ["contacts"],
    "train": ["train", "finetune", "curves", "report"],
    "score": ["evaluate", "score", "embed", "predict"],
    "variants": ["variants"],
    "generate": ["generate", "infill", "compare"],
    "attention": ["attention", "kernel-error"],
    "similarity": ["similarity"],
    "convert": ["convert"],
    "info": ["info", "push"],
    "kernels": ["kernels"],
}
"""Verbs by the module that has them; help lists them in this order."""
_USER_ERROR = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 2, with one line on standard error, for an error the user can fix."""
    _load(sys.argv[1:] if arguments is None else arguments)
    with guarded():
        try:
            status = _run(arguments)
            sys.stdout.flush()
        except ProteinLMError as error:
            status = _report(str(error))
        except ClosedPipe:
            return _BROKEN_PIPE
    if arguments is None:
        gc.freeze()  # the process ends; spares its last collection of garbage
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = app(arguments, prog_name="protein-lm", standalone_mode=False) or 0
    except ProteinLMError as error:
        return _report(str(error))
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _report(f"{where}{reason(error)}")
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except Exception as error:
        if _is_out_of_memory(error):
            return _report(
                "there is not enough memory; give fewer tokens at once, a shorter sequence or a smaller model"
            )
        # Wrong usage. Some versions of Typer have a click of their own, so there is no class to name here.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "protein-lm"
        return _report(f"{format_message().rstrip('.')}; see {command} --help")
    if status == _INTERRUPTED:  # some versions of Typer catch Ctrl-C themselves
        _report("interrupted")
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether Python or torch got no memory; torch has a class for it on accelerators alone."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_of_torch)


def _load(arguments: Sequence[str]) -> None:
    """Import the module of the verb that is asked for; all of them if none is, as for help."""
    files = [file for file, verbs in _VERBS.items() if arguments and arguments[0] in verbs]
    for file in files or _VERBS:
        import_module(f"protein_lm.cli.{file}")


def _report(message: str) -> int:
    with suppress(ClosedPipe):
        print("protein-lm: error:", one_line(message), file=sys.stderr)
    return _USER_ERROR
