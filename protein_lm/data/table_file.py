"""Tables of sequences: CSV and TSV as text, Parquet as a file; columns `sequence_id` and `sequence`, others are ignored."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protein_lm.data.raw_records import RawRecords
from protein_lm.data.records import Annotations, Spans
from protein_lm.data.text import JoinedBlocks
from protein_lm.errors import InputError

COLUMNS = ("sequence_id", "sequence")
_ROWS_OF_BLOCK = 4096
_LONGEST_CELL = 2**27


def is_table(beginning: bytes) -> bool:
    """Whether a text's first line names the columns."""
    names, _ = heading_names(beginning)
    return set(COLUMNS) <= set(names)


def missing_columns(beginning: bytes) -> list[str]:
    """Columns that a table lacks; none if the text has neither, and so is no table."""
    names, _ = heading_names(beginning)
    missing = [name for name in COLUMNS if name not in names]
    return missing if len(missing) < len(COLUMNS) else []


def read_text(beginning: bytes, first_line: int, blocks: Iterator[bytes], path: Path) -> Iterator[RawRecords]:
    """The rows of a CSV or TSV text.

    Raises:
        InputError: the text is no table.
    """
    names, delimiter = heading_names(beginning)
    if repeated := [name for name in COLUMNS if names.count(name) > 1]:
        raise InputError(f"{path}, line {first_line}: two columns are called {repeated[0]}; rename one of them")
    places = [names.index(name) for name in COLUMNS]
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(io.BufferedReader(JoinedBlocks(beginning, blocks)), encoding="utf-8", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    found: list[tuple[str, str, int, str]] = []
    line = first_line
    try:
        next(rows)
        for row in rows:
            line = first_line + rows.line_num - 1
            if not row:
                continue
            fault = "" if len(row) == len(names) else f"{len(row)} of {len(names)} columns; complete the row"
            identifier, letters = (row[place] if place < len(row) else "" for place in places)
            found.append((identifier, letters, line, fault))
            if len(found) == _ROWS_OF_BLOCK:
                yield _raw(found, path)
                found = []
    except csv.Error as error:
        raise InputError(f"{path}, line {line + 1}: {error}; correct the table") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after line {line}: not UTF-8; save the file as UTF-8") from error
    yield _raw(found, path)


def read_parquet(path: Path) -> Iterator[RawRecords]:
    """The rows of a Parquet file; rows count as lines, from 1.

    Raises:
        InputError: the file is damaged or has other columns.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            types = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
            for name in COLUMNS:
                if name not in types:
                    raise InputError(f"{path} has no column {name}; it needs sequence_id and sequence")
                if not (pyarrow.types.is_string(types[name]) or pyarrow.types.is_large_string(types[name])):
                    raise InputError(f"{path}: column {name} is {types[name]}, not string; convert it")
            line = 1
            for batch in file.iter_batches(batch_size=_ROWS_OF_BLOCK, columns=list(COLUMNS)):
                columns = (batch.column(name).to_pylist() for name in COLUMNS)
                rows = [(a or "", b or "", line + i, "") for i, (a, b) in enumerate(zip(*columns, strict=True))]
                yield _raw(rows, path)
                line += len(rows)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is a damaged Parquet file ({str(error).splitlines()[0]}); write it again") from error


def _raw(rows: list[tuple[str, str, int, str]], path: Path) -> RawRecords:
    ids = [identifier.strip().encode() for identifier, *_ in rows]
    bodies = [letters.encode() for _, letters, *_ in rows]
    lines = np.array([line for *_, line, _ in rows], dtype=np.int64)
    faults = {number: fault for number, (*_, fault) in enumerate(rows) if fault}
    for number, identifier in enumerate(ids):
        if number in faults:
            continue
        if not identifier:
            faults[number] = "the row has no sequence_id; write one"
        elif len(identifier.split()) > 1 or b"|" in identifier:
            faults[number] = f"identifier {identifier.decode()[:40]!r} is not one word; remove blanks and '|' from it"
    spans = Spans.of(ids)
    return RawRecords(
        path=path,
        headers=spans,
        sequence_ids=spans,
        lines=lines,
        bodies=Spans.of(bodies),
        body_lines=lines,
        num_layout=np.array([body.count(b"\n") for body in bodies], dtype=np.int64),
        annotations=Annotations.none(len(rows)),
        faults=faults,
    )


def heading_names(beginning: bytes) -> tuple[list[str], str]:
    """The cells of a text's first line, and what parts them: tabs if it has any, or else commas."""
    heading = beginning.partition(b"\n")[0].decode("utf-8", "replace")
    delimiter = "\t" if "\t" in heading else ","
    try:
        row = next(csv.reader([heading], delimiter=delimiter), [])
    except csv.Error:
        row = []
    return [name.strip() for name in row], delimiter
