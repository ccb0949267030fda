"""Tables of clusters: which sequences belong together and must not be torn apart by a split."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.data.hashing import hash_identifiers
from protein_lm.data.sources import Source
from protein_lm.data.text import unix_lines
from protein_lm.errors import InputError

_COLUMNS = ("sequence_id", "cluster_id")


class ClusterTable:
    """The cluster of each sequence: a TSV or CSV table, plain or compressed.

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


def _columns(source: Source) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Members and clusters, many rows at a time."""
    held, line = b"", 1
    places: tuple[int, int] | None = None
    delimiter, width = b"\t", 2
    for block in unix_lines(source.blocks()):
        text = held + block
        whole, _, held = text.rpartition(b"\n")
        rows = [row for row in whole.split(b"\n") if row]
        if not rows:
            continue
        if places is None:
            delimiter = b"\t" if b"\t" in rows[0] else b","
            places, width, is_heading = _places(rows[0].removeprefix(b"\xef\xbb\xbf"), delimiter, source.path)
            rows = rows[1:] if is_heading else rows
        if b'"' in whole:
            text_rows = csv.reader(
                io.StringIO(b"\n".join(rows).decode("utf-8", "replace")), delimiter=delimiter.decode()
            )
            cells = [[cell.encode() for cell in row] for row in text_rows]
        else:
            cells = [row.split(delimiter) for row in rows]
        for number, row in enumerate(cells):
            if len(row) != width or not all(row[place].strip() for place in places):
                raise InputError(
                    f"{source.path}, about line {line + number}: {len(row)} of {width} columns, or an empty one; "
                    "complete the row"
                )
        line += whole.count(b"\n") + 1
        yield [row[places[0]].strip() for row in cells], [row[places[1]].strip() for row in cells]


def _places(heading: bytes, delimiter: bytes, path: Path) -> tuple[tuple[int, int], int, bool]:
    names = [name.strip().decode("utf-8", "replace") for name in heading.split(delimiter)]
    if all(name in names for name in _COLUMNS):
        return (names.index(_COLUMNS[0]), names.index(_COLUMNS[1])), len(names), True
    if len(names) == 2 and not set(_COLUMNS) & set(names):
        return (1, 0), 2, False
    raise InputError(
        f"{path}: its first line must name sequence_id and cluster_id, or there must be two columns without names: "
        "representative and member"
    )
