"""One-dimensional .npy files that grow at their end.

Whole blocks go to the disk in a thread and past the system's cache of files, where the system can: what is written once and
not read again soon would only take memory there, which costs more time than the writing.
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

from protein_lm.files.journal import Growth, Mark
from protein_lm.files.output import checksum
from protein_lm.io.records import kept
from protein_lm.native.reader import reader

_BLOCK_BYTES, _PAGE_BYTES = 2**21, 2**12
"""The least that is written at a time, and what the places and sizes of such writes are multiples of."""
_MOST_WRITING = 8
"""Blocks on their way to the disk, which may falter for a moment."""


class FileFacts(TypedDict):
    """What a manifest says of an array file."""

    bytes: int
    xxh3_128: str
    """Of the values, without the header, which follows from their type and number."""


def header(dtype: np.dtype, size: int) -> bytes:
    """The header of a file of `size` values; its length is that of any other size, since numpy pads it."""
    text = io.BytesIO()
    facts = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    npy.write_array_header_1_0(text, facts)
    return text.getvalue()


def checksum_of_values(path: Path) -> str | None:
    """XXH3-128 of what stands behind the header, in hexadecimal digits; None: the header is not as `ArrayFile` writes it."""
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
    """A file whose length is known only at the end, when its header is written again.

    Args:
        path: of the file.
        dtype: of its values.
        disk: a thread that writes.
        growth: of the file that is there, to go on with.
    """

    def __init__(self, path: Path, dtype: type, disk: Executor, growth: Growth | None = None) -> None:
        self.path = path
        self.size = 0
        self._dtype = np.dtype(dtype)
        self._disk = disk
        self._file = io.FileIO(path, "r+" if growth else "w+")
        self._direct = _open_direct(path)
        start = header(self._dtype, 0)
        self._header_bytes = len(start)
        self._growth = growth or Growth(len(start))
        self._is_altered = False
        self._block = _new_block()
        self._writing: deque[tuple[Future[None], NDArray[np.uint8]]] = deque()
        """Blocks on their way to the disk."""
        self._place = 0
        """In the file, of the block that is being filled."""
        if growth:
            self.size = (growth.num_bytes - len(start)) // self._dtype.itemsize
            self._place = growth.num_bytes // _PAGE_BYTES * _PAGE_BYTES
            start = self._read(self._place, growth.num_bytes - self._place)
        self._filled = self._noted = len(start)
        """Bytes of it that are filled, and that the checksum knows."""
        self._block[: len(start)] = np.frombuffer(start, dtype=np.uint8)

    def append(self, values: NDArray) -> None:
        """Add values at the end."""
        rest = np.ascontiguousarray(values, dtype=self._dtype).view(np.uint8)
        while rest.size:
            room = self._block[self._filled :]  # a multiple of a value's bytes
            part, rest = rest[: room.size], rest[room.size :]
            room[: part.size] = part
            self._add(part.size)

    def append_kept(self, values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_]) -> int:
        """Add, of pieces of bytes that lie back to back, of `lengths` (N,), those to keep (N,); returns their bytes."""
        room = self._block[self._filled :]
        if values.size > room.size:
            chosen = kept(values, lengths, keep)
            self.append(chosen)
            return chosen.size
        size = reader().keep(values, lengths, keep, room)
        self._add(size)
        return size

    def _add(self, num_bytes: int) -> None:
        """Take account of bytes behind those that are filled, and have them written when they are many."""
        self._filled += num_bytes
        self.size += num_bytes // self._dtype.itemsize
        if self._filled < _BLOCK_BYTES:
            return
        block, size = self._block, self._filled // _PAGE_BYTES * _PAGE_BYTES
        writing = self._disk.submit(self._write_block, block[:size].data, self._place, self._noted)
        self._writing.append((writing, block))
        is_free = len(self._writing) == _MOST_WRITING or self._writing[0][0].done()
        self._block = self._written() if is_free else _new_block()
        self._block[: self._filled - size] = block[size : self._filled]
        self._place += size
        self._filled -= size
        self._noted = 0

    def mark(self) -> Mark:
        """What the file holds; not to be asked once values were replaced."""
        self._settle()
        return self._growth.mark()

    def read(self, start: int, end: int) -> NDArray:
        """Values [start, end)."""
        self._settle()
        return np.frombuffer(self._read(self._at(start), (end - start) * self._dtype.itemsize), dtype=self._dtype)

    def overwrite(self, start: int, values: NDArray) -> None:
        """Replace the values from `start` on by as many others; nothing may be appended any more, as after all below."""
        self._settle()
        self._is_altered = True
        self._write(self._at(start), np.ascontiguousarray(values, dtype=self._dtype).view(np.uint8).data)

    def replace_from(self, start: int, parts: Iterator[NDArray]) -> None:
        """Replace all values from `start` on by those of `parts`, which may come from this file further on."""
        self._settle()
        self._is_altered, size = True, start
        for part in parts:
            self.overwrite(size, part)
            size += part.size
        self.size = size
        self._file.truncate(self._at(size))

    def complete(self) -> FileFacts:
        """Write all that is left, and say what the file holds."""
        self._settle()
        self._write(0, memoryview(header(self._dtype, self.size)))
        self.close()
        found = checksum_of_values(self.path) if self._is_altered else self._growth.mark()["xxh3_128"]
        assert found
        return {"bytes": self._at(self.size), "xxh3_128": found}

    def close(self) -> None:
        """Close it as it is; what was appended since the last mark may be lacking."""
        if self._direct:
            self._direct.close()
        self._file.close()

    def _at(self, index: int) -> int:
        return self._header_bytes + index * self._dtype.itemsize

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)

    def _write(self, place: int, values: memoryview) -> None:
        self._file.seek(place)
        write_all(self._file, values)

    def _written(self) -> NDArray[np.uint8]:
        """The block that was handed over first, when it is written."""
        writing, block = self._writing.popleft()
        writing.result()  # the disk may have been at fault
        return block

    def _settle(self) -> None:
        """Have all values in the file, the last block's too; it is written again when it is full."""
        while self._writing:
            self._written()
        if self._noted < self._filled:
            self._write(self._place, self._block[: self._filled].data)
            self._growth.add(self._block[self._noted : self._filled].data)
            self._noted = self._filled

    def _write_block(self, block: memoryview, place: int, noted: int) -> None:
        self._growth.add(block[noted:])
        written = 0
        if self._direct:
            try:
                self._direct.seek(place)
                written = self._direct.write(block) or 0
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._direct.close()  # a file system that opens files so, but wants larger blocks
                self._direct = None
        if written < len(block):
            self._write(place + written, block[written:])


def _new_block() -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, 2 * _BLOCK_BYTES), dtype=np.uint8)  # it begins where a page does


def write_all(file: io.FileIO, values: memoryview) -> None:
    """Write bytes where the file is, at once if the system lets one."""
    while values:
        values = values[file.write(values) :]


def _open_direct(path: Path) -> io.FileIO | None:
    """A file past the cache; None: the system has no such thing, or not for this file."""
    with suppress(OSError, AttributeError):
        return io.FileIO(os.open(path, os.O_WRONLY | os.O_DIRECT), "w")
    return None
