"""Tables of families: which sequences belong to some families of Pfam."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.hashing import hash_identifiers
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.files.text_table import TextTable
from protein_lm.io.records import Memberships, Spans

_SEQUENCE_COLUMNS = ("sequence_id", "uniprot_acc", "pfamseq_acc")
_FAMILY_COLUMNS = ("family_id", "pfamA_acc")
"""Ours, and those of Pfam-A.regions.tsv and Pfam-A.regions.uniprot.tsv."""
ACCESSION = re.compile(r"PF\d{5}", re.ASCII)
"""Of a family in Pfam."""
_ACCESSION_LETTERS = 7
_BLOCK_BYTES = 2**22
_ROWS_AT_ONCE = 2**16
_SHOWN_LETTERS = 100
_NAMED_AFTER = re.compile(
    rb"(?:UniRef(?:50|90|100)_)?"
    rb"([OPQ]\d[A-Z\d]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z\d]{2}\d){1,2}|UPI[\dA-F]{10})"
    rb"(?:-\d+)?"
)
"""https://www.uniprot.org/help/accession_numbers; a UniRef cluster is named after its representative, whose sequence it shows
(https://www.uniprot.org/help/uniref)."""


class FamilyTable:
    """The members of some families: a text table, plain or compressed, a row for each family of a sequence.

    Either its first line names `sequence_id` and `family_id`, or it is Pfam's own (`Pfam-A.regions.tsv`,
    `Pfam-A.regions.uniprot.tsv`), or it has two columns without names of which, in the first line, one holds an accession of
    Pfam. Rows of other families are passed over: memory holds 16 bytes for each row of these.

    The clusters `UniRef50_P12345` (or 90, 100) and the isoforms `P12345-2` belong to the families of `P12345`.

    Raises:
        InputError: the file cannot be read, has other columns, or none of the families.
    """

    def __init__(self, path: Path, families: Sequence[str]) -> None:
        self.path = path
        hashes: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        places: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        with Source(path, block_bytes=_BLOCK_BYTES) as source:
            for identifiers, numbers in _rows(source, families):
                hashes.append(hash_identifiers(identifiers))
                places.append(numbers)
            self.sha256 = source.sha256
        all_hashes = np.concatenate(hashes)
        if not all_hashes.size:
            raise InputError(f"{path} has no row of a family to hold out; check the accessions, or give another table")
        order = np.argsort(all_hashes)
        self._hashes, self._families = all_hashes[order], np.concatenate(places)[order]

    def memberships(
        self, ids: NDArray[np.uint8], id_lengths: NDArray[np.int64], id_hashes: NDArray[np.uint64]
    ) -> Memberships:
        """Of N sequences, given their identifiers back to back, the bytes of each, and their hashes; pairs may repeat."""
        found, names = self._find(id_hashes), ids.tobytes()
        if b"UniRef" not in names and b"-" not in names:
            return found
        identifiers = Spans.back_to_back(names, id_lengths).cut()
        accessions = [match[1] if (match := _NAMED_AFTER.fullmatch(name)) else name for name in identifiers]
        others = self._find(hash_identifiers(accessions))
        return Memberships(
            np.concatenate((found.records, others.records)), np.concatenate((found.families, others.families))
        )

    def _find(self, hashes: NDArray[np.uint64]) -> Memberships:
        first, end = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        numbers = end - first
        records = np.repeat(np.arange(hashes.size), numbers)
        rows = np.arange(records.size) + np.repeat(first - (np.cumsum(numbers) - numbers), numbers)
        return Memberships(records, self._families[rows])


_Found = tuple[list[bytes], NDArray[np.int64]]
"""Identifiers, and places of their families, of the rows of these families."""


def _rows(source: Source, families: Sequence[str]) -> Iterator[_Found]:
    """The rows of these families, many rows at a time: by Arrow where a block has neither quotes nor anything odd."""
    table = TextTable.of(source, wanted=(*_SEQUENCE_COLUMNS, *_FAMILY_COLUMNS))
    places, is_heading = _places(table)
    reader = _ExactReader(table.path, places, families)
    if not is_heading:
        yield reader.read([(table.first_line, table.cells)])
    for line, block in table.plain_blocks():
        found = _by_arrow(block, table, places, families)
        yield found if found is not None else reader.read(table.rows_of(block, line))
    rows = table.whole_rows()
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield reader.read(part)


class _ExactReader:
    """Reads rows one by one and names those at fault."""

    def __init__(self, path: Path, places: tuple[int, int], families: Sequence[str]) -> None:
        self._path, self._places = path, places
        self._numbers = {name: number for number, name in enumerate(families)}

    def read(self, rows: Iterable[tuple[int, list[str]]]) -> _Found:
        """Those of the families, given lines and cells.

        Raises:
            InputError: one that is no accession of Pfam, or a row of a family without an identifier.
        """
        identifiers, numbers = [], []
        for line, cells in rows:
            identifier, family = (cells[place].strip() for place in self._places)
            if family.startswith("PF") and len(family.encode()) != _ACCESSION_LETTERS:
                raise InputError(
                    f"{self._path}, line {line:,}: {family[:_SHOWN_LETTERS]!r} is no accession of Pfam; write PF and five "
                    "digits, and a row for each family"
                )
            if (number := self._numbers.get(family)) is None:
                continue
            if not identifier:
                raise InputError(f"{self._path}, line {line:,}: the row has no identifier; write one")
            identifiers.append(identifier.encode())
            numbers.append(number)
        return identifiers, np.array(numbers, dtype=np.int64)


def _by_arrow(block: bytes, table: TextTable, places: tuple[int, int], families: Sequence[str]) -> _Found | None:
    """As `_ExactReader`, of a block without quotes; None if it has to look closer."""
    import pyarrow.compute
    from pyarrow import csv

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    columns = [str(place) for place in range(len(table.cells))]
    if block.isspace():
        return [], np.empty(0, dtype=np.int64)
    try:
        rows = csv.read_csv(
            pyarrow.BufferReader(block),
            csv.ReadOptions(block_size=len(block) + 1, column_names=columns, use_threads=False),
            csv.ParseOptions(delimiter=table.delimiter, quote_char=False),
            csv.ConvertOptions(
                include_columns=[columns[place] for place in places],
                column_types=dict.fromkeys(columns, pyarrow.string()),
            ),
        )
    except pyarrow.ArrowException:
        return None
    sequence_ids, family_ids = (compute.utf8_trim_whitespace(column.combine_chunks()) for column in rows.columns)
    is_other = compute.not_equal(compute.binary_length(family_ids), _ACCESSION_LETTERS)
    if np.asarray(compute.and_(is_other, compute.starts_with(family_ids, "PF"))).any():
        return None
    found = compute.index_in(family_ids, pyarrow.array(families, pyarrow.string()))
    chosen = np.flatnonzero(np.asarray(found.is_valid()))
    identifiers = sequence_ids.take(chosen).cast(pyarrow.binary()).to_pylist()
    return None if b"" in identifiers else (identifiers, np.asarray(found.take(chosen), dtype=np.int64))


def _places(table: TextTable) -> tuple[tuple[int, int], bool]:
    """The columns of identifiers and of families, and whether the first line names them."""
    names = table.names
    sequence_columns = [names.index(name) for name in _SEQUENCE_COLUMNS if name in names]
    family_columns = [names.index(name) for name in _FAMILY_COLUMNS if name in names]
    if sequence_columns and family_columns:
        table.check_names()
        return (sequence_columns[0], family_columns[0]), True
    is_family = [ACCESSION.fullmatch(name) is not None for name in names]
    if sorted(is_family) == [False, True]:
        family = is_family.index(True)
        return (1 - family, family), False
    raise InputError(
        f"{table.path}: its first line must name sequence_id and family_id, or there must be two columns without names: "
        f"identifiers and accessions of Pfam; {table.what_it_is()}"
    )
