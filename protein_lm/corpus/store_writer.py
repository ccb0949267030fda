"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.array_file import ArrayFile
from protein_lm.corpus.duplicates import RecordSet
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import ANNOTATIONS, ARRAYS, FORMAT_VERSION, MANIFEST
from protein_lm.files.journal import Growth, Mark
from protein_lm.io.records import Columns, Spans, kept, selected
from protein_lm.native.reader import reader

_COPIED_RECORDS = 2**16
_COPIED_BYTES = 2**22


class StoreWriter:
    """Writes the files of a store into an existing folder; `complete` makes a store of them.

    The folder is empty, or has files of a killed writer, restored to `found`.
    """

    def __init__(self, folder: Path, found: Mapping[str, Growth] | None = None) -> None:
        self._folder = folder
        self._disk = ThreadPoolExecutor(1)  # which works while there is other work
        self._files = {
            name: ArrayFile(folder / name, dtype, self._disk, found[name] if found else None)
            for name, dtype in ARRAYS.items()
        }
        self.num_sequences = self._files["splits.npy"].size
        self._num_residues, self._num_id_bytes = self._files["tokens.npy"].size, self._files["ids.npy"].size
        self._counts = None if found else np.zeros((2, len(Split)), dtype=np.int64)
        """Sequences and residues of each split; None: to be counted anew."""
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

    def append(self, records: Columns, splits: NDArray[np.uint8], keep: NDArray[np.bool_]) -> None:
        """Add those to keep of N sequences; `splits` (N,) has values of `Split`, all else is in `records`."""
        columns = records.lengths, records.id_lengths, splits, *records.annotations.columns()
        lengths, id_lengths, splits, *annotations = selected(columns, keep)
        num_residues = self._files["tokens.npy"].append_kept(records.tokens, records.lengths, keep)
        num_id_bytes = self._files["ids.npy"].append_kept(records.ids, records.id_lengths, keep)
        self._files["offsets.npy"].append(self._num_residues + np.cumsum(lengths))
        self._files["splits.npy"].append(splits)
        self._files["id_offsets.npy"].append(self._num_id_bytes + np.cumsum(id_lengths))
        for name, values in zip(ANNOTATIONS, annotations, strict=True):
            self._files[name].append(values)
        self._num_residues += num_residues
        self._num_id_bytes += num_id_bytes
        self.num_sequences += lengths.size
        if self._counts is not None:
            self._counts += reader().tally(splits, lengths, len(Split))

    def move(self, records: NDArray[np.int64], split: Split) -> None:
        """Give sequences, by their numbers (K,) in ascending order, another split."""
        file, self._counts = self._files["splits.npy"], None
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

    def sequences(self) -> Iterator[tuple[int, list[bytes]]]:
        """All sequences, a part at a time: number of the first, and the token ids of each."""
        for start, end in self._parts(0):
            places = self._files["offsets.npy"].read(start, end + 1)
            for a, b in _in_bytes(places):
                tokens = self._files["tokens.npy"].read(int(places[a]), int(places[b]))
                yield start + a, Spans.back_to_back(tokens.tobytes(), np.diff(places[a : b + 1])).cut()

    def drop(self, unwanted: RecordSet) -> None:
        """Take sequences out again: what stands behind them moves up, within the files."""
        if not unwanted.num_members:
            return
        first, self._counts = unwanted.first(), None
        self._num_residues = self._drop_pieces("tokens.npy", "offsets.npy", first, unwanted)
        self._num_id_bytes = self._drop_pieces("ids.npy", "id_offsets.npy", first, unwanted)
        for name in ("splits.npy", *ANNOTATIONS):
            file = self._files[name]
            kept = (file.read(a, b)[~unwanted.has(np.arange(a, b))] for a, b in self._parts(first))
            file.replace_from(first, kept)
        self.num_sequences -= unwanted.num_members

    def splits(self) -> dict[str, dict[str, int]]:
        """Sequences and residues of each split."""
        if self._counts is None:
            self._counts = np.zeros((2, len(Split)), dtype=np.int64)
            for start, end in self._parts(0):
                lengths = np.diff(self._files["offsets.npy"].read(start, end + 1))
                self._counts += reader().tally(self._files["splits.npy"].read(start, end), lengths, len(Split))
        pairs = zip(Split, *self._counts.tolist(), strict=True)
        return {
            split.label: {"num_sequences": sequences, "num_residues": residues} for split, sequences, residues in pairs
        }

    def complete(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete all files and write the manifest: `facts`, the format version, sizes and checksums of the files."""
        files = {name: file.complete() for name, file in self._files.items()}
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
