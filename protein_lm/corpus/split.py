"""Splits: which sequence is for training and which is kept back.

A seeded hash of its identifier decides, or of its cluster's name, or a table of the user's. So a sequence keeps its split
when a corpus grows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.errors import ConfigError, InputError, named, quoted
from protein_lm.files.sources import Source
from protein_lm.files.text_table import TextTable
from protein_lm.io.hashing import hash_identifiers
from protein_lm.native.numpy_reader import mix
from protein_lm.native.reader import reader


class Split(IntEnum):
    """Use of a sequence."""

    TRAIN = 0
    VALID = 1
    TEST = 2
    HELD_OUT = 3
    """A family kept out of training as a whole: harder than TEST, whose sequences have relatives in training."""

    @property
    def label(self) -> str:
        """Its name in tables and manifests."""
        return self.name.lower()


def parse_split(label: str) -> Split:
    """Return the split called `label`.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return Split[label.upper()]
    except KeyError:
        raise ConfigError(f"unknown split {label!r}; choose from {', '.join(split.label for split in Split)}") from None


def labelled_counts(counts: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Return sequences and residues of each split, (2, S), as manifests hold them."""
    keys = ("num_sequences", "num_residues")
    return {split.label: dict(zip(keys, counts[:, split].tolist(), strict=True)) for split in Split}


@dataclass(frozen=True, slots=True)
class SplitRule:
    """A seeded split into fractions."""

    seed: int = 0
    valid_fraction: float = 0.05
    test_fraction: float = 0.05

    def __post_init__(self) -> None:
        if not (self.valid_fraction >= 0 and self.test_fraction >= 0 and self.valid_fraction + self.test_fraction < 1):
            raise ConfigError(
                f"validation fraction {self.valid_fraction:g} and test fraction {self.test_fraction:g} leave nothing "
                "to train on; both must be at least 0 and their sum below 1"
            )
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed} is out of range; choose one from 0 to 2**64 - 1")

    def assign(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """(N,) split of each identifier, given its hash (`hash_identifiers`).

        >>> SplitRule(seed=1, valid_fraction=0.3).assign(hash_identifiers([b"P62593", b"P42212", b"P00974"])).tolist()
        [1, 0, 0]
        """
        seed, kept_back = mix(np.array([self.seed], dtype=np.uint64)), self.test_fraction + self.valid_fraction
        return reader().split(hashes, int(seed[0]), kept_back, self.test_fraction)


class SplitTable:
    """Splits that a user chose by identifier; the rule decides for all other sequences.

    The file is a text table, plain or compressed, with the columns `sequence_id` and `split`. The latter holds a split's name
    or is empty. Other columns are ignored.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds an unknown split or an identifier twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with Source(path) as source:
            identifiers, splits = _read_rows(source)
            self.sha256 = source.sha256
        hashes = hash_identifiers([identifier.encode() for identifier in identifiers])
        order = np.argsort(hashes)
        self._hashes, self._splits = hashes[order], np.array(splits, dtype=np.uint8)[order]
        self._identifiers = [identifiers[position] for position in order]
        self._seen = np.zeros(len(identifiers), dtype=bool)

    def assign(self, hashes: NDArray[np.uint64], splits: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Overwrite those of `splits` (N,) that the table gives, by the hashes of identifiers; return which, (N,)."""
        position = np.minimum(np.searchsorted(self._hashes, hashes), self._hashes.size - 1)
        listed = self._hashes[position] == hashes
        self._seen[position[listed]] = True
        chosen = listed & (self._splits[position] != _BY_HASH)
        splits[chosen] = self._splits[position[chosen]]
        return chosen

    def check_all_seen(self) -> None:
        """Raise InputError if the table names a sequence that the corpus did not have."""
        unseen = sorted(self._identifiers[position] for position in np.flatnonzero(~self._seen))
        if unseen:
            shown = ", ".join(unseen[:_SHOWN]) + (", ..." if len(unseen) > _SHOWN else "")
            raise InputError(
                f"{self.path} names {len(unseen):,} of {len(self._identifiers):,} sequences that no source has: "
                f"{shown}; correct or remove these rows, or add their source"
            )


_BY_HASH = 255
_SHOWN = 10
_SPLIT_COLUMNS = ("sequence_id", "split")
_LABELS = {split.label: split.value for split in Split} | {"": _BY_HASH}


def _read_rows(source: Source) -> tuple[list[str], list[int]]:
    """Return identifiers and splits of all rows."""
    path, table = source.shown, TextTable.of(source, wanted=_SPLIT_COLUMNS)
    columns = table.column_indices(_SPLIT_COLUMNS, "its first line must name sequence_id and split")
    first_line: dict[str, int] = {}
    splits: list[int] = []
    for line, cells in table.whole_rows():
        if not any(cells):
            continue
        identifier, label = (cells[column].strip() for column in columns)
        if label not in _LABELS:
            raise InputError(
                f"{path}, line {line}, sequence {named(identifier)}: unknown split {quoted(label)}; "
                f"choose {', '.join(split.label for split in Split)}, or leave it empty"
            )
        if (earlier := first_line.setdefault(identifier, line)) != line:
            raise InputError(f"{path}, line {line}: sequence {identifier} is on line {earlier} too; remove one of them")
        splits.append(_LABELS[label])
    if not splits:
        raise InputError(f"{path} has no rows; add some, or leave out the split table")
    return list(first_line), splits


_CLUSTER_COLUMNS = ("sequence_id", "cluster_id")


class ClusterTable:
    """A table of the cluster of each sequence: text, plain or compressed.

    Either its first line names `sequence_id` and `cluster_id`. Or it has two columns without names, representative and
    member, as MMseqs2 writes them. Takes 16 bytes of memory per row.

    Raises:
        InputError: the file cannot be read, has other columns, or puts a sequence into two clusters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ids: list[NDArray[np.uint64]] = []
        clusters: list[NDArray[np.uint64]] = []
        with Source(path) as source:
            for members, names in _cluster_rows(source):
                ids.append(hash_identifiers(members))
                clusters.append(hash_identifiers(names))
            self.sha256 = source.sha256
        if not sum(part.size for part in ids):
            raise InputError(f"{path} has no rows; add some, or leave out the table of clusters")
        all_ids, all_clusters = np.concatenate(ids), np.concatenate(clusters)
        order = np.argsort(all_ids, kind="stable")
        self._ids, self._clusters = all_ids[order], all_clusters[order]
        differs = (self._ids[1:] == self._ids[:-1]) & (self._clusters[1:] != self._clusters[:-1])
        if differs.any():
            row = int(order[int(np.argmax(differs)) + 1])
            raise InputError(f"{path}: the sequence of row {row + 1:,} is in another cluster too; remove one of them")

    def keys(self, id_hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """(N,) hash of the cluster's name of each sequence, and (N,) whether the table has the sequence."""
        rows = np.minimum(np.searchsorted(self._ids, id_hashes), self._ids.size - 1)
        return self._clusters[rows], self._ids[rows] == id_hashes


_ClusterRows = tuple[list[bytes], list[bytes]]
"""Members and their clusters."""


def _cluster_rows(source: Source) -> Iterator[_ClusterRows]:
    """Yield members and clusters, many rows at a time."""
    table = TextTable.of(source, wanted=_CLUSTER_COLUMNS)
    columns, has_heading = _cluster_columns(table)
    delimiter, width = table.delimiter.encode(), len(table.cells)

    def quick(block: bytes) -> _ClusterRows | None:
        rows = [line.split(delimiter) for line in block.split(b"\n") if line]
        if any(len(row) != width for row in rows):
            return None
        members, clusters = ([row[column].strip() for row in rows] for column in columns)
        return None if b"" in members or b"" in clusters else (members, clusters)

    def exact(rows: Iterable[tuple[int, list[str]]]) -> _ClusterRows:
        members, clusters = [], []
        for line, cells in rows:
            member, cluster = (cells[column].encode().strip() for column in columns)
            if not member or not cluster:
                raise InputError(f"{table.path}, line {line}: an empty cell; complete the row")
            members.append(member)
            clusters.append(cluster)
        return members, clusters

    return table.read(quick, exact, has_heading=has_heading)


def _cluster_columns(table: TextTable) -> tuple[tuple[int, int], bool]:
    """Return the columns of members and of clusters, and whether the first line names them."""
    if set(_CLUSTER_COLUMNS) <= set(table.names):
        table.check_names()
        return (table.names.index(_CLUSTER_COLUMNS[0]), table.names.index(_CLUSTER_COLUMNS[1])), True
    if len(table.names) == 2 and not set(_CLUSTER_COLUMNS) & set(table.names):
        return (1, 0), False
    raise InputError(
        f"{table.path}: its first line must name sequence_id and cluster_id, or there must be two columns without names: "
        f"representative and member; {table.what_it_is()}"
    )
