"""Writes a prepared corpus as it comes, block by block: memory holds no more than the block."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protein_lm.data.store import ARRAYS, FORMAT_VERSION, MANIFEST


class StoreWriter:
    """Writes the files of a store into an existing empty folder; `complete` makes a store of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: _ArrayFile(folder / name, dtype) for name, dtype in ARRAYS.items()}
        self._num_residues = self._num_id_bytes = 0
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
    ) -> None:
        """Add N sequences: token ids back to back and lengths, splits, UTF-8 identifiers back to back and lengths."""
        self._files["tokens.npy"].append(tokens)
        self._files["offsets.npy"].append(self._num_residues + np.cumsum(lengths))
        self._files["splits.npy"].append(splits)
        self._files["ids.npy"].append(ids)
        self._files["id_offsets.npy"].append(self._num_id_bytes + np.cumsum(id_lengths))
        self._num_residues += len(tokens)
        self._num_id_bytes += ids.size

    def complete(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Complete all files and write the manifest: `facts`, the format version and the sizes of the files."""
        for file in self._files.values():
            file.complete()
        sizes = {name: {"bytes": (self._folder / name).stat().st_size} for name in ARRAYS}
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
