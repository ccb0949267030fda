"""One-dimensional .npy files that grow at their end.

A thread writes whole blocks, past the system's cache of files where the system allows it (O_DIRECT). The files are large and
not read again soon. In the cache they would take memory, which costs more time than the writing.
"""

import errno
import io
import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protein_lm.files.output import checksum
from protein_lm.files.resume import Growth
from protein_lm.io.records import kept
from protein_lm.native.reader import reader

_BLOCK_BYTES, _PAGE_BYTES = 2**21, 2**12
"""Least bytes written at a time; and the unit of their offsets and sizes, which O_DIRECT asks for."""
_MOST_WRITING = 8
"""Blocks on their way to the disk, which may falter for a moment."""


class FileFacts(TypedDict):
    """Entry of a manifest for an array file."""

    bytes: int
    xxh3_128: str
    """Checksum of the values, without the header, which follows from their type and number."""


def header(dtype: np.dtype, size: int) -> bytes:
    """Return the header of a file of `size` values. Its length is the same for every size, since numpy pads it."""
    text = io.BytesIO()
    facts = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    npy.write_array_header_1_0(text, facts)
    return text.getvalue()


def checksum_of_values(path: Path) -> str | None:
    """Return XXH3-128 of the bytes behind the header; None if the header is not the one that `ArrayFile` writes."""
    with path.open("rb") as file:
        try:
            npy.read_magic(file)
            (size,), _, dtype = npy.read_array_header_1_0(file)
        except ValueError:
            return None
        expected = header(dtype, size)
        file.seek(0)
        if file.read(len(expected)) != expected or path.stat().st_size != len(expected) + size * dtype.itemsize:
            return None
    return checksum(path, len(expected))


class ArrayFile:
    """An array file whose length is known only at the end, when its header is written again.

    Args:
        path: the file.
        dtype: type of its values.
        disk: a thread that writes.
        growth: size and checksum of the existing file, to append to it; None: a new file.
    """

    def __init__(self, path: Path, dtype: type, disk: Executor, growth: Growth | None = None) -> None:
        self.path = path
        self.size = 0
        """Number of values."""
        self._dtype = np.dtype(dtype)
        self._disk = disk
        self._file = io.FileIO(path, "r+" if growth else "w+")
        self._direct = _open_direct(path)
        content = header(self._dtype, 0)
        self._header_bytes = len(content)
        self.growth = growth or Growth(len(content))
        """Size and checksum of the file; up to date after `settle`."""
        self._is_altered = False
        self._block, self._block_offset = _new_block(), 0
        """The block that is being filled, (2 * _BLOCK_BYTES,), and its offset in the file: a multiple of a page."""
        self._writing: deque[tuple[Future[None], NDArray[np.uint8]]] = deque()
        """Blocks on their way to the disk."""
        if growth:
            self.size = (growth.num_bytes - len(content)) // self._dtype.itemsize
            self._block_offset = growth.num_bytes // _PAGE_BYTES * _PAGE_BYTES
            content = self._read(self._block_offset, growth.num_bytes - self._block_offset)
        self._filled = self._noted = len(content)
        """Bytes of the block that are filled, and those that the checksum includes."""
        self._block[: len(content)] = np.frombuffer(content, dtype=np.uint8)

    def append(self, values: NDArray) -> None:
        """Add values at the end."""
        rest = np.ascontiguousarray(values, dtype=self._dtype).view(np.uint8)
        while rest.size:
            room = self._block[self._filled :]  # a multiple of a value's bytes
            part, rest = rest[: room.size], rest[room.size :]
            room[: part.size] = part
            self._add(part.size)

    def append_kept(self, values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_]) -> int:
        """Add those to `keep` (N,) of pieces of `lengths` (N,) that lie back to back; return their bytes."""
        room = self._block[self._filled :]
        if values.size > room.size:
            chosen = kept(values, lengths, keep)
            self.append(chosen)
            return chosen.size
        size = reader().keep(values, lengths, keep, room)
        self._add(size)
        return size

    def _add(self, num_bytes: int) -> None:
        """Count bytes that were copied into the block, and have whole pages of a full block written."""
        self._filled += num_bytes
        self.size += num_bytes // self._dtype.itemsize
        if self._filled < _BLOCK_BYTES:
            return
        block, size = self._block, self._filled // _PAGE_BYTES * _PAGE_BYTES
        writing = self._disk.submit(self._write_block, block[:size].data, self._block_offset, self._noted)
        self._writing.append((writing, block))
        is_free = len(self._writing) == _MOST_WRITING or self._writing[0][0].done()
        self._block = self._written() if is_free else _new_block()
        self._block[: self._filled - size] = block[size : self._filled]  # the last page is not full yet
        self._block_offset += size
        self._filled -= size
        self._noted = 0

    def settle(self) -> None:
        """Have all values in the file. The last block is written once more when it is full."""
        while self._writing:
            self._written()
        if self._noted < self._filled:
            self._write(self._block_offset, self._block[: self._filled].data)
            self.growth.add(self._block[self._noted : self._filled].data)
            self._noted = self._filled

    def read(self, start: int, end: int) -> NDArray:
        """Return the values [start, end)."""
        self.settle()
        return np.frombuffer(self._read(self._offset(start), (end - start) * self._dtype.itemsize), dtype=self._dtype)

    def overwrite(self, start: int, values: NDArray) -> None:
        """Replace as many values from `start` on; then nothing may be appended any more."""
        self.settle()
        self._is_altered = True
        self._write(self._offset(start), np.ascontiguousarray(values, dtype=self._dtype).view(np.uint8).data)

    def replace_from(self, start: int, parts: Iterator[NDArray]) -> None:
        """Replace all values from `start` on by those of `parts`, which may come from this file further on."""
        self.settle()
        self._is_altered, size = True, start
        for part in parts:
            self.overwrite(size, part)
            size += part.size
        self.size = size
        self._file.truncate(self._offset(size))

    def complete(self) -> FileFacts:
        """Write the rest and the header, close the file, and return its entry for the manifest."""
        self.settle()
        self._write(0, memoryview(header(self._dtype, self.size)))
        self.close()
        found = checksum_of_values(self.path) if self._is_altered else self.growth.mark()["xxh3_128"]
        assert found
        return {"bytes": self._offset(self.size), "xxh3_128": found}

    def close(self) -> None:
        """Close the file; without `settle` before, its last values may be missing."""
        if self._direct:
            self._direct.close()
        self._file.close()

    def _offset(self, index: int) -> int:
        return self._header_bytes + index * self._dtype.itemsize

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def _write(self, offset: int, values: memoryview) -> None:
        self._file.seek(offset)
        while values:
            values = values[self._file.write(values) :]

    def _written(self) -> NDArray[np.uint8]:
        """Return the block that was handed over first, once it is written."""
        writing, block = self._writing.popleft()
        writing.result()  # raises what the disk refused
        return block

    def _write_block(self, block: memoryview, offset: int, noted: int) -> None:
        """Write whole pages, in the thread; the checksum includes their first `noted` bytes already."""
        self.growth.add(block[noted:])
        written = 0
        if self._direct:
            try:
                self._direct.seek(offset)
                written = self._direct.write(block) or 0
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._direct.close()  # a file system that opens files so, but wants larger blocks
                self._direct = None
        if written < len(block):
            self._write(offset + written, block[written:])


def _new_block() -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, 2 * _BLOCK_BYTES), dtype=np.uint8)  # it begins where a page does


def _open_direct(path: Path) -> io.FileIO | None:
    """Open a file past the cache; None where the system cannot."""
    with suppress(OSError, AttributeError):
        return io.FileIO(os.open(path, os.O_WRONLY | os.O_DIRECT), "w")
    return None
