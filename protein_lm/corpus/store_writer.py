"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.array_file import ArrayFile
from protein_lm.corpus.duplicates import RecordSet
from protein_lm.corpus.split import Split, labelled_counts
from protein_lm.corpus.store import ANNOTATIONS, ARRAYS, FORMAT_VERSION, MANIFEST
from protein_lm.files.resume import WorkFolder
from protein_lm.io.records import Columns, Spans, kept, selected
from protein_lm.native.reader import reader

_COPIED_RECORDS = 2**16
_COPIED_BYTES = 2**22


class StoreWriter:
    """Writes the files of a store, or appends to those of a killed process; `complete` makes a store of them."""

    def __init__(self, work: WorkFolder) -> None:
        self._folder = work.folder
        self._disk = ThreadPoolExecutor(1)  # which works while there is other work
        self._files = {
            name: ArrayFile(work.folder / name, dtype, self._disk, work.growths.get(name))
            for name, dtype in ARRAYS.items()
        }
        work.growths |= {name: file.growth for name, file in self._files.items()}
        self.num_sequences = self._files["splits.npy"].size
        self._num_residues, self._num_id_bytes = self._files["tokens.npy"].size, self._files["ids.npy"].size
        self._counts = np.zeros((2, len(Split)), dtype=np.int64) if work.state is None else None
        """(2, splits) sequences and residues of each split; None: to be counted anew."""
        if work.state is None:
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
        """Add those to keep, (N,), of N sequences; `splits` (N,) has values of `Split`."""
        columns = records.lengths, records.id_lengths, splits, *records.annotations.columns()
        lengths, id_lengths, splits, *annotations = selected(columns, keep)  # (K,) each
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
        """Give sequences another split; their numbers (K,) are in ascending order."""
        file, self._counts = self._files["splits.npy"], None
        for start, end in self._parts(0):
            first, last = np.searchsorted(records, (start, end))  # records[first:last] are in this part
            if last > first:
                splits = file.read(start, end).copy()
                splits[records[first:last] - start] = split
                file.overwrite(start, splits)

    def settle(self) -> None:
        """Have all that was appended in the files."""
        for file in self._files.values():
            file.settle()

    def identifiers(self) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield all identifiers, a part at a time: number of the first, UTF-8 back to back, and the bytes of each (N,)."""
        for start, end in self._parts(0):
            offsets = self._files["id_offsets.npy"].read(start, end + 1)
            yield start, self._files["ids.npy"].read(int(offsets[0]), int(offsets[-1])), np.diff(offsets)

    def sequences(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield all sequences, a part at a time: number of the first, and the token ids of each."""
        for start, end in self._parts(0):
            offsets = self._files["offsets.npy"].read(start, end + 1)
            for a, b in _in_bytes(offsets):
                tokens = self._files["tokens.npy"].read(int(offsets[a]), int(offsets[b]))
                yield start + a, Spans.back_to_back(tokens.tobytes(), np.diff(offsets[a : b + 1])).cut()

    def drop(self, unwanted: RecordSet) -> None:
        """Take sequences out again: those behind them move up, within the files."""
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
        """Return sequences and residues of each split."""
        if self._counts is None:
            self._counts = np.zeros((2, len(Split)), dtype=np.int64)
            for start, end in self._parts(0):
                lengths = np.diff(self._files["offsets.npy"].read(start, end + 1))
                self._counts += reader().tally(self._files["splits.npy"].read(start, end), lengths, len(Split))
        return labelled_counts(self._counts)

    def complete(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete all files, write the manifest and return it: `facts`, and size and checksum of each file."""
        files = {name: file.complete() for name, file in self._files.items()}
        manifest = {"format_version": FORMAT_VERSION, **facts, "files": files}
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        return manifest

    def _parts(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield numbers [start, end) of sequences that are worked on at a time."""
        for start in range(first, self.num_sequences, _COPIED_RECORDS):
            yield start, min(start + _COPIED_RECORDS, self.num_sequences)

    def _drop_pieces(self, values: str, offsets: str, first: int, unwanted: RecordSet) -> int:
        """Move up the pieces (sequences or identifiers) that stay; return the bytes of all."""
        file, ends = self._files[values], self._files[offsets]
        # `end` runs ahead of the pieces that moved: where the last one of them ends now.
        end = begin = int(ends.read(first, first + 1)[0])

        def new_ends() -> Iterator[NDArray[np.int64]]:
            nonlocal end
            for start, stop in self._parts(first):
                lengths = np.diff(ends.read(start, stop + 1))[~unwanted.has(np.arange(start, stop))]
                yield end + np.cumsum(lengths)
                end += int(lengths.sum())

        def pieces() -> Iterator[NDArray[np.uint8]]:
            for start, stop in self._parts(first):
                old_ends = ends.read(start, stop + 1)  # (pieces + 1,)
                keep = ~unwanted.has(np.arange(start, stop))  # (pieces,)
                for a, b in _in_bytes(old_ends):
                    yield kept(file.read(int(old_ends[a]), int(old_ends[b])), np.diff(old_ends[a : b + 1]), keep[a:b])

        file.replace_from(begin, pieces())
        ends.replace_from(first + 1, new_ends())
        return end


def _in_bytes(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield runs [a, b) of pieces of up to `_COPIED_BYTES`, but at least one piece; `offsets` (pieces + 1,) part them."""
    start = 0
    while start < offsets.size - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + _COPIED_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), offsets.size - 1)
        yield start, stop
        start = stop
