"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block and some identifiers."""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protein_lm.data.store import ARRAYS, FORMAT_VERSION, IDS, MANIFEST

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

_IDS_PER_ROW_GROUP = 2**18


class StoreWriter:
    """Writes the files of a store into an existing empty folder; `complete` makes a store of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens, self._offsets, self._splits = (_ArrayFile(folder / name, ARRAYS[name]) for name in ARRAYS)
        self._ids = _IdTable(folder / IDS)
        self._offsets.append(np.zeros(1, dtype=np.int64))
        self._num_residues = 0

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._tokens, self._offsets, self._splits, self._ids):
            with suppress(OSError):  # a full disk refuses what is still to be written, but `error` says so already
                file.close()

    def append(
        self, tokens: bytes, lengths: NDArray[np.int64], splits: NDArray[np.uint8], sequence_ids: Sequence[bytes]
    ) -> None:
        """Add N sequences: their token ids back to back, lengths, splits and identifiers (UTF-8)."""
        self._tokens.append(tokens)
        self._offsets.append(self._num_residues + np.cumsum(lengths))
        self._splits.append(splits)
        self._ids.append(sequence_ids)
        self._num_residues += len(tokens)

    def complete(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete all files and write the manifest: `facts`, the format version and the sizes of the files."""
        for file in (self._tokens, self._offsets, self._splits):
            file.complete()
        flush = _FlushThread(self._tokens.path)  # the disk works while the identifiers are written
        self._ids.complete()
        flush.join()
        sizes = {name: {"bytes": (self._folder / name).stat().st_size} for name in (*ARRAYS, IDS)}
        manifest = {"format_version": FORMAT_VERSION, **facts, "files": sizes}
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        return manifest


class _ArrayFile:
    """A one-dimensional .npy file whose length is known only at the end, when its header is written again."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._size = 0
        self._file = path.open("wb")
        self._write_header()
        self._header_bytes = self._file.tell()

    def append(self, values: bytes | NDArray) -> None:
        array = np.frombuffer(values, dtype=self._dtype)
        self._file.write(array.data)
        self._size += array.size

    def complete(self) -> None:
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header_bytes  # numpy pads headers so that the shape may grow
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        facts = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._size,)}
        npy.write_array_header_1_0(self._file, facts)


class _IdTable:
    """The identifiers, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        self._writer: ParquetWriter | None = None

    def append(self, sequence_ids: Sequence[bytes]) -> None:
        self._pending.extend(sequence_ids)
        if len(self._pending) >= _IDS_PER_ROW_GROUP:
            self._flush()

    def complete(self) -> None:
        self._flush()
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa  # here, since it takes as long to import as a small corpus takes to read
        from pyarrow import parquet

        # built from its buffers, because `pa.array` imports pandas
        ends = np.cumsum([0, *map(len, self._pending)], dtype=np.int32)
        column = pa.StringArray.from_buffers(
            len(self._pending), pa.py_buffer(ends), pa.py_buffer(b"".join(self._pending))
        )
        schema = pa.schema([("sequence_id", pa.string())])
        if self._writer is None:
            # identifiers are all different, so that dictionaries and statistics would only cost
            self._writer = parquet.ParquetWriter(
                self._path, schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        self._writer.write_table(pa.Table.from_arrays([column], schema=schema))
        self._pending = []


class _FlushThread:
    """Writes a file's data to disk in the background."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        """Wait for the disk; raise what it said."""
        self._thread.join()
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            self._error = error
