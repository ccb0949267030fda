"""Standard output and standard error during a command: an error of writing becomes one line, or ends the command.

Letters that an output's encoding lacks are escaped. If the reader of a pipe closes it, the command ends silently.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from protein_lm.errors import OutputError
from protein_lm.files.output import reason


class ClosedPipe(BaseException):
    """The reader of our output, `head` for example, has closed it. This is no `Exception`, so that no one catches it."""


@contextmanager
def guarded() -> Iterator[None]:
    """Make the streams raise only `ClosedPipe` and `OutputError`; standard error raises `ClosedPipe` alone."""
    before = sys.stdout, sys.stderr
    output, error = (_Guarded(stream, name) for stream, name in zip(before, ("output", "error"), strict=True))
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, error)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _let_go(stream)


class _Guarded:
    """A stream whose errors are those of `guarded`."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream, self._name = stream, name
        # Under the locale C, Python sets "surrogateescape", which fails for letters that are in no name of a file.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._do("write", text) or 0

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            self._do("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _do(self, what: str, *arguments: str) -> Any:
        try:
            if self._stream is None:
                raise OSError("it is closed")
            return getattr(self._stream, what)(*arguments)
        except BrokenPipeError:
            raise ClosedPipe from None
        except OSError as error:
            if self._name == "output":
                raise OutputError(f"cannot write standard output: {reason(error)}") from error


def _let_go(stream: TextIO | None) -> None:
    """Flush a stream. If that fails, send the rest nowhere, so that the end of the process raises no error."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
