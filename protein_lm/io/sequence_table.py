"""Tables of sequences, as text or Parquet. They have columns `sequence_id` and `sequence`; others are ignored."""

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from protein_lm.errors import InputError
from protein_lm.files.parquet_table import open_parquet
from protein_lm.files.text_table import FASTA_MARK, TextTable, split_heading
from protein_lm.io.raw_records import RawRecords
from protein_lm.io.records import Annotations, Spans

COLUMNS = ("sequence_id", "sequence")
_ROWS_OF_BLOCK = 4096


def is_table(beginning: bytes) -> bool:
    """Whether a text's first line names the columns."""
    return not beginning.startswith(FASTA_MARK) and set(COLUMNS) <= set(_names(beginning))


def missing_columns(beginning: bytes) -> list[str]:
    """Columns that a table lacks. A text with neither column is no table, and lacks none."""
    names = _names(beginning)
    missing = [name for name in COLUMNS if name not in names]
    return missing if len(missing) < len(COLUMNS) else []


def _names(beginning: bytes) -> list[str]:
    return split_heading(beginning, COLUMNS)[0]


def read_text(beginning: bytes, first_line: int, blocks: Iterator[bytes], path: Path) -> Iterator[RawRecords]:
    """Read the rows of a text table, given its beginning.

    Raises:
        InputError: the text is no table.
    """
    table = TextTable(beginning, first_line, blocks, path, wanted=COLUMNS)
    indices = table.column_indices(COLUMNS, "it needs both")
    found: list[tuple[str, str, int, str]] = []
    chosen, none = itemgetter(*indices), [""] * len(table.names)
    for line, row, fault in table.rows():
        found.append((*chosen(row + none if fault else row), line, fault))
        if len(found) == _ROWS_OF_BLOCK:
            yield _raw(found, path)
            found = []
    yield _raw(found, path)


def read_parquet(path: Path) -> Iterator[RawRecords]:
    """Read the rows of a Parquet file; rows count as lines, from 1.

    Raises:
        InputError: the file is damaged or has other columns.
    """
    import pyarrow

    with open_parquet(path) as file:
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
    return RawRecords(
        path=path,
        sequence_ids=Spans.of(ids),
        lines=lines,
        bodies=Spans.of(bodies),
        body_lines=lines,
        num_layout=np.array([body.count(b"\n") for body in bodies], dtype=np.int64),
        annotations=Annotations.none(len(rows)),
        faults=faults,
    )
