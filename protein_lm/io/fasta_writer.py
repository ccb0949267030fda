"""Writes FASTA: to a file that appears when it is complete, or to standard output entry by entry."""

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from protein_lm.errors import OutputError
from protein_lm.files.output import check_absent, new_file

SUFFIXES = (".fasta", ".fa", ".faa")
_LINE = 60


def entry(header: str, letters: str) -> str:
    r"""A FASTA entry in lines of 60 letters.

    >>> entry("P1", "MK")
    '>P1\nMK\n'
    """
    lines = "\n".join(letters[start : start + _LINE] for start in range(0, len(letters), _LINE))
    return f">{header}\n{lines}\n"


def check_fasta_output(output: str) -> None:
    """Check a FASTA output before the work that fills it; `-` is standard output.

    Raises:
        OutputError: an unknown suffix, or a file that exists.
    """
    if output == "-":
        return
    path = Path(output)
    if path.name.removesuffix(".gz").endswith(SUFFIXES):
        check_absent(path)
        return
    raise OutputError(f"{output}: unknown suffix; end it in {', '.join(SUFFIXES)}, with or without .gz, or give -")


@contextmanager
def new_fasta(output: str) -> Iterator[Callable[[str, str], None]]:
    """A context with a function that writes a header and its letters; for `-` they appear at once.

    Raises:
        OutputError: as `check_fasta_output`, or the file cannot be written.
    """
    check_fasta_output(output)
    if output == "-":
        yield lambda header, letters: print(entry(header, letters), end="", flush=True)
        return
    with new_file(Path(output)) as partial:
        opener = gzip.open if partial.suffix == ".gz" else open
        with cast(IO[str], opener(partial, "wt", encoding="utf-8")) as file:
            yield lambda header, letters: print(entry(header, letters), end="", file=file)
