"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block."""

import io
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protein_lm.data.duplicates import RecordSet
from protein_lm.data.journal import Growth, Mark
from protein_lm.data.records import Columns, kept
from protein_lm.data.split import Split
from protein_lm.data.store import ANNOTATIONS, ARRAYS, FORMAT_VERSION, MANIFEST
from protein_lm.output import checksum, flush

_FLUSHED_BYTES = 2**26
"""Of tokens, about, that go to the disk at a time while others are made."""
_COPIED_RECORDS = 2**16
_COPIED_BYTES = 2**22


class StoreWriter:
    """Writes the files of a store into an existing folder; `complete` makes a store of them.

    The folder is empty, or has files of a killed writer, restored to `found`.
    """

    def __init__(self, folder: Path, found: Mapping[str, Growth] | None = None) -> None:
        self._folder = folder
        self._files = {
            name: ArrayFile(folder / name, dtype, found[name] if found else None) for name, dtype in ARRAYS.items()
        }
        self.num_sequences = self._files["splits.npy"].size
        self._num_residues, self._num_id_bytes = self._files["tokens.npy"].size, self._files["ids.npy"].size
        self._disk = ThreadPoolExecutor(1)  # which works while there is other work
        self._flushing: Future[None] | None = None
        self._unflushed = 0
        if not found:
            for name in ("offsets.npy", "id_offsets.npy"):
                self._files[name].append(np.zeros(1, dtype=np.int64))

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disk.shutdown()
        for file in self._files.values():
            with suppress(OSError):  # a full disk refuses what is still to be written, but `error` says so already
                file.close()

    def append(self, records: Columns, splits: NDArray[np.uint8]) -> None:
        """Add N sequences; `splits` (N,) has values of `Split`, all else is in `records`."""
        self._files["tokens.npy"].append(records.tokens)
        self._files["offsets.npy"].append(self._num_residues + np.cumsum(records.lengths))
        self._files["splits.npy"].append(splits)
        self._files["ids.npy"].append(records.ids)
        self._files["id_offsets.npy"].append(self._num_id_bytes + np.cumsum(records.id_lengths))
        for name, attribute in ANNOTATIONS.items():
            self._files[name].append(getattr(records.annotations, attribute))
        self._num_residues += records.tokens.size
        self._num_id_bytes += records.ids.size
        self._unflushed += records.tokens.size
        if self._unflushed >= _FLUSHED_BYTES and (self._flushing is None or self._flushing.done()):
            if self._flushing:
                self._flushing.result()  # the disk may have been at fault
            self._flushing, self._unflushed = self._disk.submit(self._files["tokens.npy"].flush), 0
        self.num_sequences += records.lengths.size

    def move(self, records: NDArray[np.int64], split: Split) -> None:
        """Give sequences, by their numbers (K,) in ascending order, another split."""
        file = self._files["splits.npy"]
        for start, end in self._parts(0):
            first, last = np.searchsorted(records, (start, end))
            if last > first:
                splits = file.read(start, end).copy()
                splits[records[first:last] - start] = split
                file.overwrite(start, splits)

    def marks(self) -> dict[str, Mark]:
        """What the files hold now, for another writer to go on with."""
        return {name: file.mark() for name, file in self._files.items()}

    def identifiers(self) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        """All identifiers, a part at a time: number of the first, UTF-8 back to back, and the bytes of each (N,)."""
        for start, end in self._parts(0):
            places = self._files["id_offsets.npy"].read(start, end + 1)
            yield start, self._files["ids.npy"].read(int(places[0]), int(places[-1])), np.diff(places)

    def drop(self, unwanted: RecordSet) -> None:
        """Take sequences out again: what stands behind them moves up, within the files."""
        if not unwanted.num_members:
            return
        first = unwanted.first()
        self._num_residues = self._drop_pieces("tokens.npy", "offsets.npy", first, unwanted)
        self._num_id_bytes = self._drop_pieces("ids.npy", "id_offsets.npy", first, unwanted)
        for name in ("splits.npy", *ANNOTATIONS):
            file = self._files[name]
            kept = (file.read(a, b)[~unwanted.has(np.arange(a, b))] for a, b in self._parts(first))
            file.replace_from(first, kept)
        self.num_sequences -= unwanted.num_members

    def splits(self) -> dict[str, dict[str, int]]:
        """Sequences and residues of each split."""
        num_sequences, num_residues = np.zeros(len(Split), dtype=np.int64), np.zeros(len(Split), dtype=np.int64)
        for start, end in self._parts(0):
            splits = self._files["splits.npy"].read(start, end)
            lengths = np.diff(self._files["offsets.npy"].read(start, end + 1))
            num_sequences += np.bincount(splits, minlength=len(Split))
            num_residues += np.bincount(splits, lengths, len(Split)).astype(np.int64)
        return {
            split.label: {"num_sequences": int(num_sequences[split]), "num_residues": int(num_residues[split])}
            for split in Split
        }

    def complete(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete all files and write the manifest: `facts`, the format version, sizes and checksums of the files."""
        for file in self._files.values():
            file.complete()
        paths = {name: self._folder / name for name in ARRAYS}
        flushed = self._disk.map(flush, paths.values())
        files = {name: {"bytes": path.stat().st_size, "xxh3_128": checksum(path)} for name, path in paths.items()}
        list(flushed)
        manifest = {"format_version": FORMAT_VERSION, **facts, "files": files}
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        return manifest

    def _parts(self, first: int) -> Iterator[tuple[int, int]]:
        for start in range(first, self.num_sequences, _COPIED_RECORDS):
            yield start, min(start + _COPIED_RECORDS, self.num_sequences)

    def _drop_pieces(self, values: str, offsets: str, first: int, unwanted: RecordSet) -> int:
        """Move up the pieces (sequences or identifiers) that stay; returns the bytes of all."""
        file, ends = self._files[values], self._files[offsets]
        end = begin = int(ends.read(first, first + 1)[0])

        def new_ends() -> Iterator[NDArray[np.int64]]:
            nonlocal end
            for start, stop in self._parts(first):
                lengths = np.diff(ends.read(start, stop + 1))[~unwanted.has(np.arange(start, stop))]
                yield end + np.cumsum(lengths)
                end += int(lengths.sum())

        def pieces() -> Iterator[NDArray[np.uint8]]:
            for start, stop in self._parts(first):
                places, keep = ends.read(start, stop + 1), ~unwanted.has(np.arange(start, stop))
                for a, b in _in_bytes(places):
                    yield kept(file.read(int(places[a]), int(places[b])), np.diff(places[a : b + 1]), keep[a:b])

        file.replace_from(begin, pieces())
        ends.replace_from(first + 1, new_ends())
        return end


def _in_bytes(places: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pieces [a, b) whose bytes, between `places`, are about as many as may be copied at a time, but at least one piece."""
    start = 0
    while start < places.size - 1:
        stop = int(np.searchsorted(places, places[start] + _COPIED_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), places.size - 1)
        yield start, stop
        start = stop


class ArrayFile:
    """A one-dimensional .npy file whose length is known only at the end, when its header is written again."""

    def __init__(self, path: Path, dtype: type, growth: Growth | None = None) -> None:
        self.path = path
        self.size = 0
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("r+b" if growth else "w+b")
        self._growth = growth or Growth()
        header = self._header()
        self._header_bytes = len(header)
        if growth:
            self.size = (growth.num_bytes - len(header)) // self._dtype.itemsize
            self._file.seek(0, 2)
        else:
            self._write(header)

    def append(self, values: bytes | NDArray) -> None:
        array = np.frombuffer(values, dtype=self._dtype)
        self._write(array.data)
        self.size += array.size

    def mark(self) -> Mark:
        """What the file holds; not to be asked once values were replaced."""
        self._file.flush()
        return self._growth.mark()

    def read(self, start: int, end: int) -> NDArray:
        """Values [start, end); the next `append` goes on at the end all the same."""
        self._file.seek(self._place(start))
        values = np.frombuffer(self._file.read((end - start) * self._dtype.itemsize), dtype=self._dtype)
        self._file.seek(0, 2)
        return values

    def overwrite(self, start: int, values: NDArray) -> None:
        """Replace the values from `start` on by as many others."""
        self._file.seek(self._place(start))
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._file.seek(0, 2)

    def replace_from(self, start: int, parts: Iterator[NDArray]) -> None:
        """Replace all values from `start` on by those of `parts`, which may come from this file further on."""
        size = start
        for part in parts:
            self._file.seek(self._place(size))
            self._file.write(np.ascontiguousarray(part, dtype=self._dtype).data)
            size += part.size
        self.size = size
        self._file.seek(self._place(size))
        self._file.truncate()

    def flush(self) -> None:
        """Have what was written go to the disk now, not all at the end; it may still be written to meanwhile."""
        os.fsync(self._file.fileno())

    def complete(self) -> None:
        self._file.seek(0)
        header = self._header()
        assert len(header) == self._header_bytes  # numpy pads headers so that the shape may grow
        self._file.write(header)
        self.close()

    def close(self) -> None:
        self._file.close()

    def _place(self, index: int) -> int:
        return self._header_bytes + index * self._dtype.itemsize

    def _write(self, values: bytes | memoryview) -> None:
        self._file.write(values)
        self._growth.add(values)

    def _header(self) -> bytes:
        header = io.BytesIO()
        facts = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.size,)}
        npy.write_array_header_1_0(header, facts)
        return header.getvalue()
