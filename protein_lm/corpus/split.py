"""Which sequence is for training and which is kept back: by a hash of its identifier, or by a table of the user's.

A sequence's split depends on its identifier and the seed alone, so that it stays where it is when a corpus grows.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.hashing import hash_identifiers, mix
from protein_lm.errors import ConfigError, InputError, named, quoted
from protein_lm.files.sources import Source
from protein_lm.files.text_table import TextTable
from protein_lm.native.reader import reader


class Split(IntEnum):
    """What a sequence is used for."""

    TRAIN = 0
    VALID = 1
    TEST = 2
    HELD_OUT = 3
    """A family kept out of training as a whole: harder than TEST, whose sequences have relatives in training."""

    @property
    def label(self) -> str:
        """The name in tables and manifests."""
        return self.name.lower()


def parse_split(label: str) -> Split:
    """The split called `label`.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return Split[label.upper()]
    except KeyError:
        raise ConfigError(f"unknown split {label!r}; choose from {', '.join(split.label for split in Split)}") from None


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
        """Split (N,) of each identifier's hash (`hash_identifiers`).

        >>> SplitRule(seed=1, valid_fraction=0.3).assign(hash_identifiers([b"P62593", b"P42212", b"P00974"])).tolist()
        [1, 0, 0]
        """
        seed, kept_back = mix(np.array([self.seed], dtype=np.uint64)), self.test_fraction + self.valid_fraction
        return reader().split(hashes, int(seed[0]), kept_back, self.test_fraction)


class SplitTable:
    """Splits that a user chose by identifier; the rest is left to the rule.

    The file is a text table, plain or compressed, with the columns `sequence_id` and `split`, which holds a split's name or
    is empty; other columns are ignored.

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
        """Overwrite the splits (N,) of the sequences that the table has one for, given the hashes of their identifiers.

        Returns:
            (N,) which these are.
        """
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
_COLUMNS = ("sequence_id", "split")
_LABELS = {split.label: split.value for split in Split} | {"": _BY_HASH}


def _read_rows(source: Source) -> tuple[list[str], list[int]]:
    """Identifiers and splits of all rows."""
    path, table = source.shown, TextTable.of(source, wanted=_COLUMNS)
    places = table.places(_COLUMNS, "its first line must name sequence_id and split")
    first_line: dict[str, int] = {}
    splits: list[int] = []
    for line, cells in table.whole_rows():
        if not any(cells):
            continue
        identifier, label = (cells[place].strip() for place in places)
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
