"""Tables of families: which sequences belong to some families of Pfam."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.data.hashing import hash_identifiers
from protein_lm.data.records import Memberships, Spans
from protein_lm.data.sources import Source
from protein_lm.data.table_file import heading_names
from protein_lm.data.text import JoinedBlocks, beginning, unix_lines
from protein_lm.errors import InputError

_SEQUENCE_COLUMNS = ("sequence_id", "uniprot_acc", "pfamseq_acc")
_FAMILY_COLUMNS = ("family_id", "pfamA_acc")
"""Ours, and those of Pfam-A.regions.tsv and Pfam-A.regions.uniprot.tsv."""
ACCESSION = re.compile(r"PF\d{5}", re.ASCII)
"""Of a family in Pfam."""
_ACCESSION_LETTERS = 7
_BLOCK_BYTES = 2**22
_SHOWN_LETTERS = 100
_NAMED_AFTER = re.compile(
    rb"(?:UniRef(?:50|90|100)_)?"
    rb"([OPQ]\d[A-Z\d]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z\d]{2}\d){1,2}|UPI[\dA-F]{10})"
    rb"(?:-\d+)?"
)
"""https://www.uniprot.org/help/accession_numbers; a UniRef cluster is named after its representative, whose sequence it shows
(https://www.uniprot.org/help/uniref)."""


class FamilyTable:
    """The members of some families: a TSV or CSV table, plain or compressed, a row for each family of a sequence.

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
        with Source(path) as source:
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


def _rows(source: Source, families: Sequence[str]) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
    """Identifiers, and places of their families, of the rows of these families, many rows at a time."""
    import pyarrow.compute
    from pyarrow import csv

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    path, blocks = source.shown, unix_lines(source.blocks())
    text, _ = beginning(blocks)
    names, delimiter = heading_names(text)
    places, row = _places(names, path)
    columns = [str(place) for place in range(len(names))]
    wanted = pyarrow.array(families, pyarrow.string())
    try:
        batches = csv.open_csv(
            io.BufferedReader(JoinedBlocks(text, blocks)),
            # Threads read faster, but cannot tell the row of a fault.
            csv.ReadOptions(block_size=_BLOCK_BYTES, skip_rows=row, column_names=columns, use_threads=False),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(
                include_columns=[columns[place] for place in places],
                column_types=dict.fromkeys(columns, pyarrow.string()),
            ),
        )
        for batch in batches:
            sequence_ids, family_ids = map(compute.utf8_trim_whitespace, batch.columns)
            is_other = compute.not_equal(compute.binary_length(family_ids), _ACCESSION_LETTERS)
            strange = np.asarray(compute.and_(is_other, compute.starts_with(family_ids, "PF")))
            if strange.any():
                number = int(np.argmax(strange))
                shown = family_ids[number].as_py()[:_SHOWN_LETTERS]
                raise InputError(
                    f"{path}, row {row + number + 1:,}: {shown!r} is no accession of Pfam; write PF and five digits, and a "
                    "row for each family"
                )
            found = compute.index_in(family_ids, wanted)
            rows = np.flatnonzero(np.asarray(found.is_valid()))
            identifiers = sequence_ids.take(rows).cast(pyarrow.binary()).to_pylist()
            if b"" in identifiers:
                number = int(rows[identifiers.index(b"")])
                raise InputError(f"{path}, row {row + number + 1:,}: the row has no identifier; write one")
            yield identifiers, np.asarray(found.take(rows), dtype=np.int64)
            row += len(batch)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0][:_SHOWN_LETTERS]}; correct the table") from error


def _places(names: list[str], path: Path) -> tuple[tuple[int, int], int]:
    """The columns of identifiers and of families, and how many rows name columns."""
    sequence_columns = [names.index(name) for name in _SEQUENCE_COLUMNS if name in names]
    family_columns = [names.index(name) for name in _FAMILY_COLUMNS if name in names]
    if sequence_columns and family_columns:
        return (sequence_columns[0], family_columns[0]), 1
    is_family = [ACCESSION.fullmatch(name) is not None for name in names]
    if sorted(is_family) == [False, True]:
        family = is_family.index(True)
        return (1 - family, family), 0
    raise InputError(
        f"{path}: its first line must name sequence_id and family_id, or there must be two columns without names: "
        "identifiers and accessions of Pfam"
    )
