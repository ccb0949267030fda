"""The compiled reader of files, if it is built: see fasta.cpp, flat_file.cpp and columns.cpp.

`$PROTEIN_LM_KERNELS` = `off` turns it off too.
"""

import ctypes
import os
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.errors import ConfigError
from protein_lm.native.build import OFF, READER, VARIABLE, library_of

_TEXTS = "head", "body", "codes"
_SIZES = "head_size", "body_size", "capacity"
_SWITCHES = "first_ambiguous", "x", "j", "all_to_x"
_ARRAYS = (
    *("tokens", "lengths", "has_ambiguous", "ids", "id_lengths", "id_hashes", "fingerprints"),
    *("taxon_ids", "cluster_sizes", "protein_existence", "flags"),
)
_RESULTS = "num_tokens", "num_id_bytes", "num_j", "num_bouz"


class CompiledFormat(Enum):
    """What it reads."""

    FASTA = "fasta"
    FLAT_FILE = "flat file"


class Call(ctypes.Structure):
    """See `Call` in reading.h: fields, order and types are the same."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TEXTS),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int32) for name in _SWITCHES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in _RESULTS),
    ]


class Reader:
    """The library. Calls from several threads run at once: they do not hold the interpreter's lock."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            OSError: it is damaged.
            AttributeError: it lacks a function.
        """
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        library.protein_lm_call_bytes.restype = ctypes.c_int64
        if library.protein_lm_call_bytes() != ctypes.sizeof(Call):
            raise OSError("it is of another version")
        self._formats = {
            CompiledFormat.FASTA: library.protein_lm_read_fasta,
            CompiledFormat.FLAT_FILE: library.protein_lm_read_flat_file,
        }
        self._count = library.protein_lm_count
        self._keep, self._spread = library.protein_lm_keep, library.protein_lm_spread
        self._see, self._select = library.protein_lm_see, library.protein_lm_select
        self._split, self._tally = library.protein_lm_split, library.protein_lm_tally
        for function in (self._spread, self._select, self._split, self._tally):
            function.restype = None
        for function in (*self._formats.values(), self._count, self._keep, self._see):
            function.restype = ctypes.c_int64

    def read(self, form: CompiledFormat, call: Call) -> int:
        """The number of records; below 0: the text is not ordinary, and what was written means nothing."""
        return self._formats[form](ctypes.byref(call))

    def count(self, text: bytes | memoryview, byte: bytes) -> int:
        """How often a byte is in a text."""
        letters = np.frombuffer(text, dtype=np.uint8)
        return self._count(ctypes.c_void_p(address(letters)), ctypes.c_int64(letters.size), ctypes.c_int32(byte[0]))

    def keep(
        self, values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_], found: NDArray[np.uint8]
    ) -> int:
        """Copy, of pieces that lie back to back in `values`, of `lengths` (N,), those to keep (N,); returns their bytes."""
        arrays = [np.ascontiguousarray(array) for array in (values, lengths, keep)]
        addresses = [ctypes.c_void_p(address(array)) for array in (*arrays, found)]
        return self._keep(*addresses[:3], ctypes.c_int64(keep.size), addresses[3])

    def select(self, columns: Sequence[NDArray], keep: NDArray[np.bool_]) -> list[NDArray]:
        """Of columns (N, ...), whose values have 1, 4, 8 or 16 bytes, the values to keep (N,)."""
        columns, keep = [np.ascontiguousarray(column) for column in columns], np.ascontiguousarray(keep)
        number = int(np.count_nonzero(keep))
        found = [np.empty((number, *column.shape[1:]), dtype=column.dtype) for column in columns]
        places = np.empty(keep.size, dtype=np.int32)
        addresses = ctypes.c_void_p * len(columns)
        self._select(
            addresses(*map(address, columns)),
            addresses(*map(address, found)),
            (ctypes.c_int64 * len(columns))(*(column.itemsize * column[:1].size for column in columns)),
            ctypes.c_int64(len(columns)),
            ctypes.c_void_p(address(keep)),
            ctypes.c_int64(keep.size),
            ctypes.c_void_p(address(places)),
        )
        return found

    def split(self, hashes: NDArray[np.uint64], seed: int, most_of_1: float, most_of_2: float) -> NDArray[np.uint8]:
        """Splits (N,) of hashes: 2 and 1 where they are, as numbers in [0, 1), below these, else 0."""
        hashes, splits = np.ascontiguousarray(hashes), np.empty(hashes.size, dtype=np.uint8)
        self._split(
            ctypes.c_void_p(address(hashes)),
            ctypes.c_int64(hashes.size),
            ctypes.c_uint64(seed),
            ctypes.c_double(most_of_1),
            ctypes.c_double(most_of_2),
            ctypes.c_void_p(address(splits)),
        )
        return splits

    def tally(self, splits: NDArray[np.uint8], lengths: NDArray[np.int64], num_splits: int) -> NDArray[np.int64]:
        """(2, S) sequences and residues of each split, of sequences (N,) and their lengths."""
        splits, lengths = np.ascontiguousarray(splits), np.ascontiguousarray(lengths)
        totals = np.empty((2, num_splits), dtype=np.int64)
        numbers = ctypes.c_int64(splits.size), ctypes.c_int64(num_splits)
        addresses = [ctypes.c_void_p(address(array)) for array in (splits, lengths, totals)]
        self._tally(*addresses[:2], *numbers, addresses[2])
        return totals

    def see(self, prints: NDArray[np.uint64], slots: NDArray[np.uint64], places: int) -> tuple[NDArray[np.bool_], int]:
        """Note fingerprints (N, 2) in a hash table (M,) whose free slots are 0, each in one of a number of places.

        Returns:
            (N,) which were not there, and how many were lost: others for them, or they themselves.
        """
        prints, is_new = np.ascontiguousarray(prints), np.empty(len(prints), dtype=np.bool_)
        addresses = [ctypes.c_void_p(address(array)) for array in (prints, slots, is_new)]
        number, size, most = (ctypes.c_int64(value) for value in (len(prints), slots.size, min(places, slots.size)))
        return is_new, self._see(addresses[0], number, addresses[1], size, most, addresses[2])

    def spread(self, rows: NDArray, bits: int, found: NDArray) -> NDArray[np.int64]:
        """Sort rows of a ledger (N,) by the first bits of their keys into `found`; where those of each kind (2^bits,) end."""
        ends = np.empty(2**bits, dtype=np.int64)
        addresses = [ctypes.c_void_p(address(array)) for array in (rows, found, ends)]
        self._spread(addresses[0], ctypes.c_int64(rows.size), ctypes.c_int32(bits), *addresses[1:])
        return ends


_NOTHING = ctypes.c_char * 0


def address(array: NDArray) -> int:
    """Where an array's values begin in memory; they must lie back to back."""
    if array.flags.writeable:
        return ctypes.addressof(_NOTHING.from_buffer(array.data))  # five times as quick
    return array.ctypes.data


def compiled_reader() -> Reader | None:
    """What this process reads files with; None: Python and numpy.

    Raises:
        ConfigError: it is built, but cannot be used.
    """
    return None if os.environ.get(VARIABLE) == OFF else _load()


def forget() -> None:
    """Look anew for what is built."""
    _load.cache_clear()


@lru_cache
def _load() -> Reader | None:
    path = library_of(READER)
    if not path.exists():
        return None
    try:
        return Reader(path)
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"the compiled reader {path} cannot be used ({error}); build it anew with protein-lm kernels build, or set "
            f"{VARIABLE}={OFF}"
        ) from None
