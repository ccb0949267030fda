"""Equal sequences and equal identifiers found among any number of records, in memory that hardly grows with them.

A record leaves 24 bytes in a ledger: what is compared, and its number. Ledgers spread their rows over files by the first bits
of the key, and are looked through one file at a time.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from protein_lm.corpus.array_file import write_all
from protein_lm.files.journal import Growth, Mark
from protein_lm.native.numpy_reader import NumpyReader
from protein_lm.native.reader import reader

ROW = np.dtype([("key", "<u8"), ("check", "<u8"), ("record", "<i8")])
_HELD_ROWS = 2**18
"""Rows in memory before they are spread over files."""
_LEAST_SLOTS, _MOST_SLOTS = 2**12, 2**24
"""Of `Seen`, 8 bytes each."""
_BYTES_PER_SLOT = 192
"""Of text: a record of UniRef50 has about 400, so that half of the slots stay free."""
_PLACES, _PLACES_IF_FULL = 128, 8
"""Slots where a sequence may be: so many that none is lost in a table that is half full, and few where it is too small."""
_BITS = 6
"""Of the key, that choose a file: 64 files of 94 MB at 250 million records."""


def fingerprints(sequences: Sequence[bytes]) -> NDArray[np.uint64]:
    """(N, 2) 128 bits of each sequence (XXH3): that two of 10⁹ different ones share them has a chance of 10⁻²¹."""
    digests = b"".join(map(xxhash.xxh3_128_digest, sequences))
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)


class Ledger:
    """Keys of records, looked through when all are there; `folder` takes its files.

    The folder may have files of a ledger of a killed process, restored to `found`.
    """

    def __init__(self, folder: Path, name: str, found: Mapping[str, Growth] | None = None) -> None:
        self._folder, self._name = folder, name
        self._files = {name: growth for name, growth in (found or {}).items() if name.startswith(f"{self._name}.")}
        self._held, self._sorted = (np.empty(_HELD_ROWS, dtype=ROW) for _ in range(2))
        self._num_held = 0
        self._is_spread = bool(self._files)

    def add(self, keys: NDArray[np.uint64], checks: NDArray[np.uint64], first: int) -> None:
        """Note N records numbered from `first`."""
        noted = 0
        while noted < keys.size:
            number = min(_HELD_ROWS - self._num_held, keys.size - noted)
            rows, part = self._held[self._num_held : self._num_held + number], slice(noted, noted + number)
            rows["key"], rows["check"] = keys[part], checks[part]
            rows["record"] = np.arange(first + noted, first + noted + number)
            self._num_held += number
            noted += number
            if self._num_held == _HELD_ROWS:
                self._spread()

    def marks(self) -> dict[str, Mark]:
        """What the files hold now, for another ledger to go on with; nothing is left in memory."""
        self._spread()
        return {name: growth.mark() for name, growth in self._files.items()}

    def remove(self) -> None:
        """Remove the files."""
        for name in self._files:
            (self._folder / name).unlink()

    def repeats(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Records whose key and check an earlier record has too, and for each the first that has them."""
        for rows in self._tables():
            rows = _with_shared_keys(rows)
            rows = rows[np.lexsort((rows["record"], rows["check"], rows["key"]))]
            same = (rows["key"][1:] == rows["key"][:-1]) & (rows["check"][1:] == rows["check"][:-1])
            repeated = np.flatnonzero(same) + 1
            begins = np.flatnonzero(np.append(True, ~same))
            first = begins[np.searchsorted(begins, repeated, side="right") - 1]
            yield rows["record"][repeated], rows["record"][first]

    def conflicts(self) -> NDArray[np.uint64]:
        """Keys that stand with more than one check."""
        found = []
        for rows in self._tables():
            rows = _with_shared_keys(rows)
            rows = rows[np.lexsort((rows["check"], rows["key"]))]
            differ = (rows["key"][1:] == rows["key"][:-1]) & (rows["check"][1:] != rows["check"][:-1])
            found.append(rows["key"][1:][differ])
        return np.concatenate(found)

    def _tables(self) -> Iterator[NDArray]:
        if not self._is_spread:
            yield self._held[: self._num_held]
            return
        self._spread()
        for name in self._files:
            yield np.fromfile(self._folder / name, dtype=ROW)

    def _spread(self) -> None:
        ends = reader().spread(self._held[: self._num_held], _BITS, self._sorted)
        for number, (start, end) in enumerate(zip(chain((0,), ends), ends, strict=False)):
            if end > start:
                name, rows = f"{self._name}.{number}.tmp", self._sorted[start:end].data
                with (self._folder / name).open("ab", buffering=0) as file:
                    write_all(file, rows.cast("B"))
                self._files.setdefault(name, Growth()).add(rows)
        self._num_held, self._is_spread = 0, True


def _with_shared_keys(rows: NDArray) -> NDArray:
    """The rows whose key another row has too: few, so that the rest need not be sorted by all columns."""
    keys = np.sort(rows["key"])
    same = keys[1:] == keys[:-1]
    if not same.any():  # as ever with identifiers
        return rows[:0]
    order = np.argsort(rows["key"])
    return rows.take(order[np.append(same, False) | np.append(False, same)])


class Seen:
    """Sequences that were seen, by their fingerprints: all of them, or where they are too many for it, most of the last ones.

    It saves a store that is written from being written again without its duplicates. Only the compiled reader has it.
    It keeps 64 bits of each sequence, and knows some of the others by where it keeps them: that one of 10⁹ sequences is taken
    for another has a chance of 10⁻⁸.

    Args:
        num_bytes: of text, about: the table is not larger than they ask for. 0: nobody knows. None: nothing is to be known.
    """

    def __init__(self, num_bytes: int | None) -> None:
        self._reader = reader() if num_bytes is not None else NumpyReader()
        wanted = num_bytes // _BYTES_PER_SLOT if num_bytes else _MOST_SLOTS
        num_slots = min(max(_LEAST_SLOTS, wanted), _MOST_SLOTS) if self._reader.is_compiled else 0
        self.knows_all = self._reader.is_compiled and wanted <= _MOST_SLOTS
        """Whether every sequence that was shown is known; False from the beginning where so many cannot be expected to be."""
        pages = mmap.mmap(-1, num_slots * 8) if num_slots else b""  # zeros, of which only what is touched takes memory
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._slots = np.frombuffer(pages, dtype=np.uint64)

    def add(self, prints: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(N,) which of some sequences, by their fingerprints (N, 2), are not known to have been seen before."""
        is_new, num_lost = self._reader.see(prints, self._slots, _PLACES if self.knows_all else _PLACES_IF_FULL)
        self.knows_all &= not num_lost
        return is_new


class Repeated:
    """Sequences that repeat earlier ones, found as they come or, where too many came for that, when all are there.

    Args:
        folder: takes the files of a ledger, if one is needed.
        num_bytes: as for `Seen`.
        found: files of a killed process, as for `Ledger`.
        stored: gives the numbers and the sequences, a part at a time, of those that are there already.
    """

    def __init__(
        self,
        folder: Path,
        num_bytes: int | None,
        found: Mapping[str, Growth],
        stored: Callable[[], Iterable[tuple[int, Sequence[bytes]]]],
    ) -> None:
        self._folder, self._stored = folder, stored
        self._ledger: Ledger | None = None
        if any(name.startswith(f"{_SEQUENCES}.") for name in found):
            self._seen, self._ledger = Seen(None), Ledger(folder, _SEQUENCES, found)
            return
        self._seen = Seen(num_bytes)
        if self._seen.knows_all:
            for _, prints in self._prints():
                self._seen.add(prints)
        self._begin_ledger_if_needed()

    def add(self, prints: NDArray[np.uint64], first: int) -> NDArray[np.bool_]:
        """Take sequences by their fingerprints (N, 2), numbered from `first` on, but for those that are known to repeat one.

        Returns:
            (N,) which are taken.
        """
        is_new = self._seen.add(prints)
        self._begin_ledger_if_needed()
        if self._ledger is not None:
            taken = prints[is_new]
            self._ledger.add(taken[:, 0], taken[:, 1], first)
        return is_new

    def _prints(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        return ((first, fingerprints(sequences)) for first, sequences in self._stored())

    def _begin_ledger_if_needed(self) -> None:
        if self._ledger is None and not self._seen.knows_all:
            self._ledger = Ledger(self._folder, _SEQUENCES)
            for first, prints in self._prints():
                self._ledger.add(prints[:, 0], prints[:, 1], first)

    def found(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Of those taken, the ones that repeat another after all, and for each the first that it repeats."""
        if self._ledger is not None:
            yield from self._ledger.repeats()

    def marks(self) -> dict[str, Mark]:
        """As those of `Ledger`."""
        return self._ledger.marks() if self._ledger is not None else {}

    def remove(self) -> None:
        """Remove the files."""
        if self._ledger is not None:
            self._ledger.remove()


_SEQUENCES = "sequences"


class RecordSet:
    """A set of record numbers in one bit each."""

    def __init__(self, size: int) -> None:
        self._bits = np.zeros(-(-size // 8), dtype=np.uint8)
        self.num_members = 0

    def add(self, records: NDArray[np.int64]) -> None:
        """Add records that are not in the set yet."""
        np.bitwise_or.at(self._bits, records >> 3, (1 << (records & 7)).astype(np.uint8))
        self.num_members += records.size

    def first(self) -> int:
        """The least member of a set that is not empty."""
        byte = int(np.argmax(self._bits != 0))
        return 8 * byte + int(np.unpackbits(self._bits[byte : byte + 1], bitorder="little").argmax())

    def has(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) whether each of some records is in the set."""
        return (self._bits[records >> 3] >> (records & 7).astype(np.uint8)) & 1 > 0
