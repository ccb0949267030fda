"""Standard output and standard error for the time of a command: what they refuse becomes one line, or the end of the command.

Letters that an output's encoding lacks are escaped. Whoever reads a pipe may close it: the command then ends silently.
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
    """Whoever read our output, `head` for example, has enough. No fault that anybody on the way should take for their own."""


@contextmanager
def guarded() -> Iterator[None]:
    """Within, the streams raise `ClosedPipe` and `OutputError` only, standard error not even the latter."""
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
    """A stream in everything but its errors."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream, self._name = stream, name
        # Under the locale C, Python's errors are "surrogateescape", which is for names of files and knows no other letters.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See `TextIO`."""
        return self._do("write", text) or 0

    def writelines(self, lines: Any) -> None:
        """See `TextIO`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """See `TextIO`."""
        if self._stream is not None:
            self._do("flush")

    def isatty(self) -> bool:
        """See `TextIO`."""
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
    """Write what waits in a stream; if that cannot be, it goes nowhere, so that the end of the process does not stumble."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
