"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protein_lm.data.duplicates import RecordSet
from protein_lm.data.records import Annotations
from protein_lm.data.split import Split
from protein_lm.data.store import ANNOTATIONS, ARRAYS, FORMAT_VERSION, MANIFEST
from protein_lm.output import checksum

_COPIED_RECORDS = 2**16
_COPIED_BYTES = 2**22


class StoreWriter:
    """Writes the files of a store into an existing empty folder; `complete` makes a store of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: _ArrayFile(folder / name, dtype) for name, dtype in ARRAYS.items()}
        self.num_sequences = self._num_residues = self._num_id_bytes = 0
        for name in ("offsets.npy", "id_offsets.npy"):
            self._files[name].append(np.zeros(1, dtype=np.int64))

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk refuses what is still to be written, but `error` says so already
                file.close()

    def append(
        self,
        tokens: bytes,
        lengths: NDArray[np.int64],
        splits: NDArray[np.uint8],
        ids: NDArray[np.uint8],
        id_lengths: NDArray[np.int64],
        annotations: Annotations,
    ) -> None:
        """Add N sequences.

        Args:
            tokens: token ids of all, back to back.
            lengths: (N,) residues of each.
            splits: (N,) values of `Split`.
            ids: UTF-8 identifiers of all, back to back.
            id_lengths: (N,) bytes of each.
            annotations: of all.
        """
        self._files["tokens.npy"].append(tokens)
        self._files["offsets.npy"].append(self._num_residues + np.cumsum(lengths))
        self._files["splits.npy"].append(splits)
        self._files["ids.npy"].append(ids)
        self._files["id_offsets.npy"].append(self._num_id_bytes + np.cumsum(id_lengths))
        for name, attribute in ANNOTATIONS.items():
            self._files[name].append(getattr(annotations, attribute))
        self._num_residues += len(tokens)
        self._num_id_bytes += ids.size
        self.num_sequences += lengths.size

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
        files = {
            name: {"bytes": (self._folder / name).stat().st_size, "xxh3_128": checksum(self._folder / name)}
            for name in ARRAYS
        }
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
                    yield file.read(int(places[a]), int(places[b]))[np.repeat(keep[a:b], np.diff(places[a : b + 1]))]

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


class _ArrayFile:
    """A one-dimensional .npy file whose length is known only at the end, when its header is written again."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._size = 0
        self._file: BinaryIO = path.open("w+b")
        self._write_header()
        self._header_bytes = self._file.tell()

    def append(self, values: bytes | NDArray) -> None:
        array = np.frombuffer(values, dtype=self._dtype)
        self._file.write(array.data)
        self._size += array.size

    def read(self, start: int, end: int) -> NDArray:
        """Values [start, end); the next `append` goes on at the end all the same."""
        self._file.seek(self._place(start))
        values = np.frombuffer(self._file.read((end - start) * self._dtype.itemsize), dtype=self._dtype)
        self._file.seek(0, 2)
        return values

    def replace_from(self, start: int, parts: Iterator[NDArray]) -> None:
        """Replace all values from `start` on by those of `parts`, which may come from this file further on."""
        size = start
        for part in parts:
            self._file.seek(self._place(size))
            self._file.write(np.ascontiguousarray(part, dtype=self._dtype).data)
            size += part.size
        self._size = size
        self._file.seek(self._place(size))
        self._file.truncate()

    def complete(self) -> None:
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header_bytes  # numpy pads headers so that the shape may grow
        self.close()

    def close(self) -> None:
        self._file.close()

    def _place(self, index: int) -> int:
        return self._header_bytes + index * self._dtype.itemsize

    def _write_header(self) -> None:
        facts = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._size,)}
        npy.write_array_header_1_0(self._file, facts)
