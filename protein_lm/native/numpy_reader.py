"""The work of reading files that has a compiled form too, by numpy: the reference of `native.reader.NativeReader`."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from protein_lm.native.structures import ReadCall

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class CompiledFormat(Enum):
    """A format that the compiled reader knows."""

    FASTA = "fasta"
    FLAT_FILE = "flat file"


class NumpyReader:
    """Reads and chooses columns of records. N is their number."""

    is_compiled = False

    def read(self, form: CompiledFormat, call: ReadCall) -> int:
        """Read a text into the arrays of a call.

        Returns:
            The number of records; below 0: the text is left to the format's parser, and the arrays mean nothing.
        """
        return -1

    def count(self, text: bytes | memoryview, byte: bytes) -> int:
        """Count a byte in a text."""
        return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == byte[0]))

    def keep(
        self, values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_], target: NDArray[np.uint8]
    ) -> int:
        """Copy the pieces to keep (N,) into `target`, and return their bytes.

        Pieces, of `lengths` (N,) bytes, lie back to back in `values`.
        """
        runs = np.flatnonzero(np.diff(keep, prepend=False, append=False)).reshape(-1, 2)
        ends, size = np.append(0, np.cumsum(lengths)), 0
        for start, end in ends[runs].tolist():
            target[size : size + end - start] = values[start:end]
            size += end - start
        return size

    def select(self, columns: Sequence[NDArray], keep: NDArray[np.bool_]) -> list[NDArray]:
        """Select the values to keep (N,) from columns (N, ...), whose values have 1, 4, 8 or 16 bytes."""
        return [column[keep] for column in columns]

    def split(self, hashes: NDArray[np.uint64], seed: int, most_of_1: float, most_of_2: float) -> NDArray[np.uint8]:
        """Split hashes (N,), as numbers in [0, 1): 2 below `most_of_2`, else 1 below `most_of_1`, else 0."""
        uniform = (mix(hashes ^ np.uint64(seed)) >> np.uint64(11)) * 2.0**-53
        splits = np.zeros(hashes.size, dtype=np.uint8)
        splits[uniform < most_of_1] = 1
        splits[uniform < most_of_2] = 2
        return splits

    def tally(self, splits: NDArray[np.uint8], lengths: NDArray[np.int64], num_splits: int) -> NDArray[np.int64]:
        """Count sequences and residues of each split, (2, S), of sequences (N,) and their lengths."""
        residues = np.bincount(splits, lengths, num_splits).astype(np.int64)
        return np.stack((np.bincount(splits, minlength=num_splits), residues))

    def spread(self, rows: NDArray, bits: int, target: NDArray) -> NDArray[np.int64]:
        """Sort rows of a ledger (N,) by the first bits of their keys, stably, into `target`; return the ends (2^bits,)."""
        numbers = (rows["key"] >> np.uint64(64 - bits)).astype(np.uint8)  # a byte is sorted by counting
        rows.take(np.argsort(numbers, kind="stable"), out=target[: rows.size])
        return np.cumsum(np.bincount(numbers, minlength=2**bits))

    def see(
        self, prints: NDArray[np.uint64], slots: NDArray[np.uint64], num_tried: int
    ) -> tuple[NDArray[np.bool_], int]:
        """Note fingerprints (N, 2) in a hash table (M,) whose free slots are 0, each in one of `num_tried` slots.

        Returns:
            (N,) which were not there, and how many were lost: others for them, or they themselves. Without the compiled
            reader nothing is noted.
        """
        return np.ones(len(prints), dtype=np.bool_), len(prints)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, a bijection of 64-bit numbers (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
