"""Tables to files and back, the format chosen by suffix: DataFrames, or text that grew row by row."""

import csv
import io
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from protein_lm.errors import InputError, OutputError
from protein_lm.output import check_absent, new_file

SUFFIXES = (".csv", ".tsv", ".parquet")
_TEXT_AT_ONCE = 2**24
"""Bytes of text that become a row group of Parquet."""


def check_table_output(path: str) -> None:
    """Refuse a table output early, before the work that fills it: `-` is standard output.

    Raises:
        OutputError: an unknown suffix, or a file that exists.
    """
    if path == "-":
        return
    if Path(path).suffix not in SUFFIXES:
        raise OutputError(
            f"{path}: unknown table format; end it in {', '.join(SUFFIXES)}, or give - for standard output"
        )
    check_absent(Path(path))


def write_table(table: pd.DataFrame, path: str) -> None:
    """Write a table to .csv, .tsv or .parquet, or as CSV to standard output for `-`.

    Raises:
        OutputError: as `check_table_output`, or the file cannot be written.
    """
    check_table_output(path)
    if path == "-":
        table.to_csv(sys.stdout, index=False)
        return
    with new_file(Path(path)) as partial:
        if partial.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False, sep="\t" if partial.suffix == ".tsv" else ",")


def rows_of_text(rows: Iterable[Sequence[object]], path: str) -> bytes:
    """Rows as lines of UTF-8 text, parted by tabs if `path` ends in .tsv, or else by commas; floats keep all their digits."""
    text = io.StringIO()
    csv.writer(text, delimiter=_delimiter(path), lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def write_grown_table(
    text: Path, path: Path, types: Mapping[str, str], *, replace: bool = False, is_claimed: bool = False
) -> None:
    """Write a table of any size whose heading and rows `rows_of_text(..., path)` made, in constant memory.

    Args:
        text: the file of these lines.
        path: .csv, .tsv or .parquet.
        types: Arrow's name for the type of each column.
        replace: whether an existing file may be replaced.
        is_claimed: whether the caller has claimed `path`.

    Raises:
        OutputError: as `new_file`.
    """
    with new_file(path, replace=replace, is_claimed=is_claimed) as partial:
        if path.suffix == ".parquet":
            _write_parquet(text, partial, types)
        else:
            shutil.copyfile(text, partial)


def _write_parquet(text: Path, path: Path, types: Mapping[str, str]) -> None:
    import pyarrow
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in types.items()])
    with (
        arrow_csv.open_csv(
            text,
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_TEXT_AT_ONCE),
            convert_options=arrow_csv.ConvertOptions(column_types=schema),
        ) as batches,
        parquet.ParquetWriter(path, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def _delimiter(path: str) -> str:
    return "\t" if path.endswith(".tsv") else ","


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a table with a heading; all cells are text, and missing ones empty.

    Raises:
        InputError: the file does not exist, has another suffix, or cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a table ends in {', '.join(SUFFIXES)}; rename or convert it")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            return frame.astype(object).where(frame.notna(), "").map(_text)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the name") from error
    except (OSError, ValueError) as error:  # pandas' and Arrow's errors of parsing are of these classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as a table: {reason}; correct it") from error


def _text(value: Any) -> str:
    """A cell of a Parquet table as a CSV would have it; a list of numbers becomes numbers between blanks."""
    return " ".join(map(str, value)) if isinstance(value, np.ndarray | list) else str(value)
