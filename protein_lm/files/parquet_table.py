"""Reads Parquet tables by the file's own columns; pandas would make one of them an index."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protein_lm.errors import InputError
from protein_lm.files.text_table import shown_names

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"


@contextmanager
def open_parquet(path: Path) -> "Iterator[ParquetFile]":
    """Open a Parquet file; errors of reading it become InputError.

    Raises:
        InputError: the file is damaged, or two columns have one name.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
                raise InputError(f"{path}: two columns are called {shown_names(repeated[:1])}; rename one of them")
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is a damaged Parquet file ({reason}); write it again") from error


def read_columns(path: Path) -> dict[str, list[str]]:
    """Return all columns by name, with the cells of a text table: whole numbers stay whole next to empty cells.

    Raises:
        InputError: as `open_parquet`.
    """
    with open_parquet(path) as file:
        table = file.read()
        return {name: list(map(_text, table.column(name).to_pylist())) for name in table.column_names}


def _text(value: Any) -> str:
    """Return a cell as text, empty if it is missing or no number. A list of numbers becomes numbers between blanks."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return " ".join("nan" if part is None else str(part) for part in value)
    return value.decode() if isinstance(value, bytes) else str(value)
