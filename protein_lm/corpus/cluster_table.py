"""Tables of clusters: which sequences belong together and must not be torn apart by a split."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.hashing import hash_identifiers
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.files.text_table import TextTable

_COLUMNS = ("sequence_id", "cluster_id")
_ROWS_AT_ONCE = 2**16


class ClusterTable:
    """The cluster of each sequence: a text table, plain or compressed.

    Either its first line names `sequence_id` and `cluster_id`, or it has two columns without names, representative and
    member, as MMseqs2 writes them. Holds 16 bytes per row.

    Raises:
        InputError: the file cannot be read, has other columns, or puts a sequence into two clusters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ids: list[NDArray[np.uint64]] = []
        clusters: list[NDArray[np.uint64]] = []
        with Source(path) as source:
            for members, names in _columns(source):
                ids.append(hash_identifiers(members))
                clusters.append(hash_identifiers(names))
            self.sha256 = source.sha256
        if not sum(part.size for part in ids):
            raise InputError(f"{path} has no rows; add some, or leave out the table of clusters")
        all_ids, all_clusters = np.concatenate(ids), np.concatenate(clusters)
        order = np.argsort(all_ids, kind="stable")
        self._ids, self._clusters = all_ids[order], all_clusters[order]
        same = self._ids[1:] == self._ids[:-1]
        if (same & (self._clusters[1:] != self._clusters[:-1])).any():
            number = int(np.argmax(same & (self._clusters[1:] != self._clusters[:-1])))
            row = int(order[number + 1])
            raise InputError(f"{path}: the sequence of row {row + 1:,} is in another cluster too; remove one of them")

    def keys(self, id_hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """For each sequence the hash of its cluster's name, and whether the table has it."""
        place = np.minimum(np.searchsorted(self._ids, id_hashes), self._ids.size - 1)
        return self._clusters[place], self._ids[place] == id_hashes


_Columns = tuple[list[bytes], list[bytes]]
"""Members and their clusters."""


def _columns(source: Source) -> Iterator[_Columns]:
    """Members and clusters, many rows at a time."""
    table = TextTable.of(source, wanted=_COLUMNS)
    places, is_heading = _places(table)
    if not is_heading:
        yield _exact([(table.first_line, table.cells)], table, places)
    for line, block in table.plain_blocks():
        yield _quick(block, table, places) or _exact(table.rows_of(block, line), table, places)
    rows = table.whole_rows()
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield _exact(part, table, places)


def _quick(block: bytes, table: TextTable, places: tuple[int, int]) -> _Columns | None:
    """The columns of a block without quotes; None if a row is odd."""
    delimiter, width = table.delimiter.encode(), len(table.cells)
    rows = [line.split(delimiter) for line in block.split(b"\n") if line]
    if any(len(row) != width for row in rows):
        return None
    members, clusters = ([row[place].strip() for row in rows] for place in places)
    return None if b"" in members or b"" in clusters else (members, clusters)


def _exact(rows: Iterable[tuple[int, list[str]]], table: TextTable, places: tuple[int, int]) -> _Columns:
    """The columns of rows, given lines and cells.

    Raises:
        InputError: a cell is empty.
    """
    members, clusters = [], []
    for line, cells in rows:
        member, cluster = (cells[place].encode().strip() for place in places)
        if not member or not cluster:
            raise InputError(f"{table.path}, line {line}: an empty cell; complete the row")
        members.append(member)
        clusters.append(cluster)
    return members, clusters


def _places(table: TextTable) -> tuple[tuple[int, int], bool]:
    """The columns of members and clusters, and whether the first line names them."""
    if set(_COLUMNS) <= set(table.names):
        table.check_names()
        return (table.names.index(_COLUMNS[0]), table.names.index(_COLUMNS[1])), True
    if len(table.names) == 2 and not set(_COLUMNS) & set(table.names):
        return (1, 0), False
    raise InputError(
        f"{table.path}: its first line must name sequence_id and cluster_id, or there must be two columns without names: "
        f"representative and member; {table.what_it_is()}"
    )
