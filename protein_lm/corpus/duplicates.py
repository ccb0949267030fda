"""Equal sequences and equal identifiers among any number of records, in memory that hardly grows with them.

A record leaves a row of 24 bytes in a ledger: its key, what is compared, and its number. A ledger spreads its rows over 64
files by the first bits of the key. Each file is small enough to be sorted in memory.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

import numpy as np
import xxhash
from numpy.typing import NDArray

from protein_lm.files.resume import WorkFolder
from protein_lm.native.numpy_reader import NumpyReader
from protein_lm.native.reader import reader

ROW = np.dtype([("key", "<u8"), ("check", "<u8"), ("record", "<i8")])
_HELD_ROWS = 2**18
"""Rows in memory before they are spread over files."""
_LEAST_SLOTS, _MOST_SLOTS = 2**12, 2**24
"""Slots of `SeenFingerprints`, 8 bytes each."""
_BYTES_PER_SLOT = 192
"""Bytes of text for a slot: a record of UniRef50 has about 400, so half of the slots stay free."""
_TRIED_SLOTS, _TRIED_SLOTS_IF_FULL = 128, 8
"""Slots tried for a sequence: so many that a half-full table loses none, and few where the table is too small."""
_FILE_BITS = 6
"""Bits of the key that choose a file: 64 files of 94 MB at 250 million records."""


def fingerprints(sequences: Sequence[bytes]) -> NDArray[np.uint64]:
    """(N, 2) 128 bits of each sequence (XXH3). Two of 10⁹ different ones share them with a probability of 10⁻²¹."""
    digests = b"".join(map(xxhash.xxh3_128_digest, sequences))
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)


class Ledger:
    """Keys of records, compared when all are there.

    Args:
        work: the folder that takes its files, or has them from a killed process.
        name: begins the names of its files.
    """

    def __init__(self, work: WorkFolder, name: str) -> None:
        self._work, self._name = work, name
        self._held, self._sorted = (np.empty(_HELD_ROWS, dtype=ROW) for _ in range(2))
        self._num_held = 0

    @property
    def file_names(self) -> list[str]:
        """Names of its files, none as long as all rows are in memory."""
        return [name for name in self._work.growths if name.startswith(f"{self._name}.")]

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
                self.settle()

    def remove(self) -> None:
        """Delete the files."""
        for name in self.file_names:
            self._work.remove(name)

    def repeats(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield records (K,) whose key and check an earlier record has too, and for each the first such record (K,)."""
        for rows in self._tables():
            rows = _with_shared_keys(rows)
            rows = rows[np.lexsort((rows["record"], rows["check"], rows["key"]))]
            # Equal rows stand together now: each but the first of a run repeats it.
            same = (rows["key"][1:] == rows["key"][:-1]) & (rows["check"][1:] == rows["check"][:-1])
            repeated = np.flatnonzero(same) + 1  # (K,) rows of the table
            run_starts = np.flatnonzero(np.append(True, ~same))
            first = run_starts[np.searchsorted(run_starts, repeated, side="right") - 1]  # (K,) start of each one's run
            yield rows["record"][repeated], rows["record"][first]

    def conflicts(self) -> NDArray[np.uint64]:
        """(K,) keys with more than one check."""
        found = []
        for rows in self._tables():
            rows = _with_shared_keys(rows)
            rows = rows[np.lexsort((rows["check"], rows["key"]))]
            differ = (rows["key"][1:] == rows["key"][:-1]) & (rows["check"][1:] != rows["check"][:-1])
            found.append(rows["key"][1:][differ])
        return np.concatenate(found)

    def _tables(self) -> Iterator[NDArray]:
        """Yield all rows in tables, such that equal keys are in one table."""
        if not self.file_names:
            yield self._held[: self._num_held]
            return
        self.settle()
        for name in self.file_names:
            yield np.fromfile(self._work.flushed(name), dtype=ROW)

    def settle(self) -> None:
        """Move the rows in memory to the files."""
        ends = reader().spread(self._held[: self._num_held], _FILE_BITS, self._sorted)
        for number, (start, end) in enumerate(zip(chain((0,), ends), ends, strict=False)):
            if end > start:
                self._work.append(f"{self._name}.{number}.tmp", self._sorted[start:end].data)
        self._num_held = 0


def _with_shared_keys(rows: NDArray) -> NDArray:
    """Return the rows whose key another row has too: few, so that the rest need not be sorted by all columns."""
    keys = np.sort(rows["key"])
    same = keys[1:] == keys[:-1]  # (N - 1,) whether a key equals the next one
    if not same.any():  # the usual case of identifiers
        return rows[:0]
    order = np.argsort(rows["key"])
    return rows.take(order[np.append(same, False) | np.append(False, same)])  # equal to the next or to the one before


class SeenFingerprints:
    """Fingerprints of the sequences so far: of all, or of most of the last ones if they are too many for the table.

    With it, most duplicates are never written to the store, which then need not be written again without them. Only the
    compiled reader has it. It keeps 64 bits of each sequence, and knows some of the others by the slot that it uses. One of
    10⁹ sequences is taken for another with a probability of 10⁻⁸.

    Args:
        num_bytes: about how much text will come, which limits the table. 0: unknown. None: keep nothing.
    """

    def __init__(self, num_bytes: int | None) -> None:
        self._reader = reader() if num_bytes is not None else NumpyReader()
        wanted = num_bytes // _BYTES_PER_SLOT if num_bytes else _MOST_SLOTS
        num_slots = min(max(_LEAST_SLOTS, wanted), _MOST_SLOTS) if self._reader.is_compiled else 0
        self.knows_all = self._reader.is_compiled and wanted <= _MOST_SLOTS
        """Whether it knows every sequence that it was given. False from the start if they are likely to be too many."""
        pages = mmap.mmap(-1, num_slots * 8) if num_slots else b""  # zeros; only touched pages take memory
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._slots = np.frombuffer(pages, dtype=np.uint64)

    def add(self, prints: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Take fingerprints (N, 2); return which are not known to have come before, (N,)."""
        is_new, num_lost = self._reader.see(
            prints, self._slots, _TRIED_SLOTS if self.knows_all else _TRIED_SLOTS_IF_FULL
        )
        self.knows_all &= not num_lost
        return is_new


class RepeatFinder:
    """Finds sequences that repeat earlier ones: as they come, or when all are there if they are too many for that.

    Args:
        work: takes the files of a ledger if one is needed, or has them from a killed process.
        num_bytes: as for `SeenFingerprints`.
        stored: yields the sequences that the store has already, a part at a time, each with its first number.
    """

    def __init__(
        self, work: WorkFolder, num_bytes: int | None, stored: Callable[[], Iterable[tuple[int, Sequence[bytes]]]]
    ) -> None:
        self._work, self._stored = work, stored
        ledger = Ledger(work, "sequences")
        self._ledger = ledger if ledger.file_names else None
        self._seen = SeenFingerprints(None if self._ledger else num_bytes)
        if self._ledger is None:
            if self._seen.knows_all:
                for _, prints in self._stored_fingerprints():
                    self._seen.add(prints)
            self._begin_ledger_if_needed()

    def add(self, prints: NDArray[np.uint64], first: int) -> NDArray[np.bool_]:
        """Take fingerprints (N, 2) but for known repeats, numbered from `first`; return which are taken, (N,)."""
        is_new = self._seen.add(prints)
        self._begin_ledger_if_needed()
        if self._ledger is not None:
            taken = prints[is_new]  # (K, 2), numbered as the store numbers them
            self._ledger.add(taken[:, 0], taken[:, 1], first)
        return is_new

    def _stored_fingerprints(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        return ((first, fingerprints(sequences)) for first, sequences in self._stored())

    def _begin_ledger_if_needed(self) -> None:
        if self._ledger is None and not self._seen.knows_all:
            self._ledger = Ledger(self._work, "sequences")
            for first, prints in self._stored_fingerprints():
                self._ledger.add(prints[:, 0], prints[:, 1], first)

    def late_repeats(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield those taken (K,) that repeat another after all, and for each the first that it repeats (K,)."""
        if self._ledger is not None:
            yield from self._ledger.repeats()

    def settle(self) -> None:
        """Leave nothing in memory that a resumed process needs."""
        if self._ledger is not None:
            self._ledger.settle()

    def remove(self) -> None:
        """Delete the files."""
        if self._ledger is not None:
            self._ledger.remove()


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
        """Return the least member of a set that is not empty."""
        byte = int(np.argmax(self._bits != 0))
        return 8 * byte + int(np.unpackbits(self._bits[byte : byte + 1], bitorder="little").argmax())

    def has(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) whether each record is in the set."""
        return (self._bits[records >> 3] >> (records & 7).astype(np.uint8)) & 1 > 0
