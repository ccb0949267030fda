"""The reader of files that this process uses: the compiled one where it is built, else numpy's.

`$PROTEIN_LM_KERNELS` = `off` turns the compiled one off too. Its sources are fasta.cpp, flat_file.cpp and columns.cpp.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import c_double, c_int32, c_int64, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.errors import ConfigError
from protein_lm.native.build import OFF, READER, VARIABLE, library_of
from protein_lm.native.numpy_reader import CompiledFormat, NumpyReader
from protein_lm.native.structures import ReadCall


class NativeReader(NumpyReader):
    """The compiled reader. Calls from several threads run at once: they do not hold the interpreter's lock."""

    is_compiled = True

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises:
            OSError: it is damaged.
            AttributeError: it lacks a function.
        """
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)

        def function(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
            found = getattr(library, f"protein_lm_{name}")
            found.restype, found.argtypes = result, arguments
            return found

        if function("call_bytes", c_int64)() != ctypes.sizeof(ReadCall):
            raise OSError("it is of another version")
        self._formats = {
            CompiledFormat.FASTA: function("read_fasta", c_int64, c_void_p),
            CompiledFormat.FLAT_FILE: function("read_flat_file", c_int64, c_void_p),
        }
        self._count = function("count", c_int64, c_void_p, c_int64, c_int32)
        self._keep = function("keep", c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p)
        self._select = function("select", None, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p)
        self._split = function("split", None, c_void_p, c_int64, c_uint64, c_double, c_double, c_void_p)
        self._tally = function("tally", None, c_void_p, c_void_p, c_int64, c_int64, c_void_p)
        self._see = function("see", c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p)
        self._spread = function("spread", None, c_void_p, c_int64, c_int32, c_void_p, c_void_p)

    def read(self, form: CompiledFormat, call: ReadCall) -> int:
        return self._formats[form](ctypes.addressof(call))

    def count(self, text: bytes | memoryview, byte: bytes) -> int:
        letters = np.frombuffer(text, dtype=np.uint8)
        return self._count(address(letters), letters.size, byte[0])

    def keep(
        self, values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_], target: NDArray[np.uint8]
    ) -> int:
        arrays = [np.ascontiguousarray(array) for array in (values, lengths, keep)]
        return self._keep(*map(address, arrays), keep.size, address(target))

    def select(self, columns: Sequence[NDArray], keep: NDArray[np.bool_]) -> list[NDArray]:
        columns, keep = [np.ascontiguousarray(column) for column in columns], np.ascontiguousarray(keep)
        number = int(np.count_nonzero(keep))
        selected = [np.empty((number, *column.shape[1:]), dtype=column.dtype) for column in columns]
        scratch = np.empty(keep.size, dtype=np.int32)
        addresses = c_void_p * len(columns)
        num_bytes = (c_int64 * len(columns))(*(column.itemsize * column[:1].size for column in columns))
        sources, targets = addresses(*map(address, columns)), addresses(*map(address, selected))
        self._select(sources, targets, num_bytes, len(columns), address(keep), keep.size, address(scratch))
        return selected

    def split(self, hashes: NDArray[np.uint64], seed: int, most_of_1: float, most_of_2: float) -> NDArray[np.uint8]:
        hashes, splits = np.ascontiguousarray(hashes), np.empty(hashes.size, dtype=np.uint8)
        self._split(address(hashes), hashes.size, seed, most_of_1, most_of_2, address(splits))
        return splits

    def tally(self, splits: NDArray[np.uint8], lengths: NDArray[np.int64], num_splits: int) -> NDArray[np.int64]:
        splits, lengths = np.ascontiguousarray(splits), np.ascontiguousarray(lengths)
        totals = np.empty((2, num_splits), dtype=np.int64)
        self._tally(address(splits), address(lengths), splits.size, num_splits, address(totals))
        return totals

    def see(
        self, prints: NDArray[np.uint64], slots: NDArray[np.uint64], num_tried: int
    ) -> tuple[NDArray[np.bool_], int]:
        prints, is_new = np.ascontiguousarray(prints), np.empty(len(prints), dtype=np.bool_)
        num_tried = min(num_tried, slots.size)
        num_lost = self._see(address(prints), len(prints), address(slots), slots.size, num_tried, address(is_new))
        return is_new, num_lost

    def spread(self, rows: NDArray, bits: int, target: NDArray) -> NDArray[np.int64]:
        ends = np.empty(2**bits, dtype=np.int64)
        self._spread(address(rows), rows.size, bits, address(target), address(ends))
        return ends


_NOTHING = ctypes.c_char * 0


def address(array: NDArray) -> int:
    """Return where an array's values begin in memory; they must lie back to back."""
    if array.flags.writeable:
        return ctypes.addressof(_NOTHING.from_buffer(array.data))  # five times as quick
    return array.ctypes.data


def reader() -> NumpyReader:
    """The reader that this process uses.

    Raises:
        ConfigError: the compiled one is built, but cannot be used.
    """
    return _NUMPY if os.environ.get(VARIABLE) == OFF else _load()


def forget() -> None:
    """Look for a built library anew at the next call."""
    _load.cache_clear()


_NUMPY = NumpyReader()


@lru_cache
def _load() -> NumpyReader:
    path = library_of(READER)
    if not path.exists():
        return _NUMPY
    try:
        return NativeReader(path)
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"the compiled reader {path} cannot be used ({error}); build it anew with protein-lm kernels build, or set "
            f"{VARIABLE}={OFF}"
        ) from None
