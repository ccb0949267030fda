"""Writes tables by suffix and reads them by contents: DataFrames, or text that grew row by row."""

import csv
import io
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

import pandas as pd

from protein_lm.errors import InputError, OutputError
from protein_lm.files import parquet_table
from protein_lm.files.output import check_absent, new_file
from protein_lm.files.sources import COMPRESSED_SUFFIXES, Source
from protein_lm.files.text import as_utf8, beginning, unix_lines, without_comments
from protein_lm.files.text_table import FASTA_MARK, TextTable, shown_names, split_heading

SUFFIXES = (".csv", ".tsv", ".parquet")
_TEXT_AT_ONCE = 2**24
"""Bytes of text for a row group of Parquet."""


def check_table_output(path: str) -> None:
    """Refuse a bad table output before the work that fills it; `-` is standard output.

    Raises:
        OutputError: the suffix is unknown, or the file exists.
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
    """Return rows as lines of UTF-8 text, with tabs if `path` ends in .tsv, else commas; floats keep all their digits."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if path.endswith(".tsv") else ",", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def write_grown_table(
    text: Path, path: Path, types: Mapping[str, str], *, replace: bool = False, is_claimed: bool = False
) -> None:
    """Write a table of any size in constant memory.

    Args:
        text: a file of heading and rows that `rows_of_text(..., path)` made.
        path: .csv, .tsv or .parquet.
        types: Arrow's name of each column's type.
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


def table_name(path: Path) -> str | None:
    """Return a file's name without .csv, .tsv, .txt or .parquet and a suffix of compression; None for other suffixes.

    >>> table_name(Path("assays/A4_HUMAN.CSV.gz"))
    'A4_HUMAN'
    """
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem if path.suffix.lower() in (*SUFFIXES, ".txt") else None


def column_names(path: Path, *, wanted: Collection[str] = ()) -> list[str]:
    """Return the names in a file's first line, or of a Parquet file's columns, whatever the file's name.

    Args:
        path: the file.
        wanted: columns that tell the delimiter, see `split_heading`.

    Raises:
        InputError: the file cannot be read.
    """
    with Source(path) as source:
        blocks = source.blocks()
        first = next(blocks, b"")
        if first.startswith(parquet_table.MAGIC) and source.is_plain_file:
            with parquet_table.open_parquet(path) as file:
                return list(file.schema_arrow.names)
        lines = unix_lines(as_utf8(chain([first], blocks), path))
        text, line = beginning(lines)
        begun, _ = without_comments(text, line, lines) if text.startswith(b"#") else (text, line)  # as in a3m
        return [] if begun.startswith(FASTA_MARK) else split_heading(text, wanted)[0]


def read_table(path: Path, *, needs: Collection[str] = (), wanted: Collection[str] = ()) -> tuple[pd.DataFrame, str]:
    """Read a table with a heading, as text or Parquet by its contents; return it and the SHA-256 of the file.

    All cells are text, and missing ones empty. No column becomes an index. A column without a name is called `Unnamed: 0`, as
    in pandas, with its number from 0.

    Args:
        path: the file, plain or compressed; Parquet must be plain.
        needs: columns of which it must have one.
        wanted: columns that tell the delimiter, see `split_heading`.

    Raises:
        InputError: the file cannot be read, is no table, or has none of the columns in `needs`.
    """
    with Source(path) as source:
        blocks = source.blocks()
        first = next(blocks, b"")
        if first.startswith(parquet_table.MAGIC):
            for _ in blocks:  # Arrow reads it by name, but all bytes must be hashed
                pass
            if not source.is_plain_file:
                raise InputError(
                    f"{source.shown} is a Parquet table inside something else; write it to a file, uncompressed"
                )
            columns = parquet_table.read_columns(path)
            _check_needed(path, list(columns), needs, f"it has {shown_names(list(columns))}")
        else:
            table = TextTable.of_blocks(chain([first], blocks), source.shown, wanted=wanted)
            _check_needed(source.shown, table.names, needs, table.what_it_is())
            columns = _columns(table)
        return pd.DataFrame(columns, dtype=object), source.sha256


def _check_needed(path: Path, names: Sequence[str], needs: Collection[str], what_it_is: str) -> None:
    if needs and not {*needs} & {*names}:
        raise InputError(f"{path} has no column {' or '.join(needs)}; {what_it_is}; rename the one that is meant")


def _columns(table: TextTable) -> dict[str, Sequence[str]]:
    table.check_names()
    names = list(table.names)
    for column, name in enumerate(names):
        if not name:
            default = f"Unnamed: {column}"
            candidates = chain([default], (f"{default}.{number}" for number in count(1)))
            names[column] = next(free for free in candidates if free not in names)
    rows = [cells for _, cells in table.whole_rows()]
    return dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
