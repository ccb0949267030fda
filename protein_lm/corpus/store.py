"""A prepared corpus on disk: token ids of all sequences back to back, and their annotations.

| file | contents |
|---|---|
| `tokens.npy` | uint8 (T,), residues of all N sequences back to back, no special tokens |
| `offsets.npy` | int64 (N + 1,), sequence i is `tokens[offsets[i]:offsets[i + 1]]` |
| `splits.npy` | uint8 (N,), values of `Split` |
| `ids.npy` | uint8, UTF-8 of all N identifiers back to back |
| `id_offsets.npy` | int64 (N + 1,), identifier i is `ids[id_offsets[i]:id_offsets[i + 1]]` |
| `taxon_ids.npy` | int32 (N,), NCBI taxonomy identifiers, 0 if unknown |
| `cluster_sizes.npy` | int32 (N,), members of a UniRef cluster, 0 if unknown |
| `protein_existence.npy` | uint8 (N,), UniProtKB's level of evidence 1 to 5, 0 if unknown |
| `flags.npy` | uint8 (N,), bits 1 fragment, 2 reviewed, 4 unreviewed (`records.FRAGMENT` ...) |
| `manifest.json` | sources and settings; sizes of the files above and checksums of their values |
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.corpus import Corpus
from protein_lm.errors import StoreError, quoted
from protein_lm.files.plain_files import is_plain_name, read_json
from protein_lm.io.records import Annotations

FORMAT_VERSION = 3
ARRAYS = {
    "tokens.npy": np.uint8,
    "offsets.npy": np.int64,
    "splits.npy": np.uint8,
    "ids.npy": np.uint8,
    "id_offsets.npy": np.int64,
    "taxon_ids.npy": np.int32,
    "cluster_sizes.npy": np.int32,
    "protein_existence.npy": np.uint8,
    "flags.npy": np.uint8,
}
ANNOTATIONS = {
    "taxon_ids.npy": "taxon_ids",
    "cluster_sizes.npy": "cluster_sizes",
    "protein_existence.npy": "protein_existence",
    "flags.npy": "flags",
}
"""Files of annotations -> attributes of `records.Annotations`."""
MANIFEST = "manifest.json"


class TokenStore(Corpus):
    """Reads a folder that `data prepare` made. Arrays are memory-mapped, so that opening costs nothing."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.tokens: NDArray[np.uint8] = map_array(path / "tokens.npy", np.uint8)
        self.offsets: NDArray[np.int64] = map_array(path / "offsets.npy", np.int64)
        self.splits: NDArray[np.uint8] = map_array(path / "splits.npy", np.uint8)
        self.ids: NDArray[np.uint8] = map_array(path / "ids.npy", np.uint8)
        self.id_offsets: NDArray[np.int64] = map_array(path / "id_offsets.npy", np.int64)
        self.annotations = Annotations(
            **{attribute: map_array(path / name, ARRAYS[name]) for name, attribute in ANNOTATIONS.items()}
        )
        pairs = ((self.offsets, self.tokens), (self.id_offsets, self.ids))
        fits = all(ends.size == self.num_sequences + 1 and ends[-1] == values.size for ends, values in pairs)
        if not fits or any(getattr(self.annotations, name).size != self.num_sequences for name in ANNOTATIONS.values()):
            raise StoreError(f"{path} is damaged: its arrays do not fit together; prepare it again")

    @classmethod
    def open(cls, path: Path) -> "TokenStore":
        """Open the folder that `data prepare` made.

        Raises:
            StoreError: there is no such folder, or it is incomplete, damaged or of another format version.
        """
        return cls(path, read_manifest(path))

    @property
    def num_residues(self) -> int:
        return self.tokens.size

    @property
    def sources(self) -> list[dict[str, Any]]:
        return self.manifest["sources"]

    @property
    def identity(self) -> dict[str, str]:
        return {name: self.manifest["files"][name]["xxh3_128"] for name in ("tokens.npy", "offsets.npy", "splits.npy")}

    @property
    def groups(self) -> dict[str, range]:
        return {self.path.resolve().name: range(self.num_sequences)}

    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.offsets[indices + 1] - self.offsets[indices]

    def offsets_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.offsets[indices]

    def residues_at(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.tokens[offsets]

    def residues(self, index: int) -> NDArray[np.uint8]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def sequence_id(self, index: int) -> str:
        return self.ids[self.id_offsets[index] : self.id_offsets[index + 1]].tobytes().decode()

    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        return Annotations(**{name: getattr(self.annotations, name)[indices] for name in ANNOTATIONS.values()})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a prepared or joined corpus, after a check that all its files have their sizes.

    Raises:
        StoreError: as `TokenStore.open`.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist; make it with: protein-lm data prepare FASTA -o {path}")
    if not (path / MANIFEST).is_file():
        raise StoreError(
            f"{path} is not a prepared corpus: it has no {MANIFEST}; make one with: protein-lm data prepare"
        )
    try:
        manifest = read_json(path / MANIFEST)
        version = manifest["format_version"]
        sizes = {}
        if version == FORMAT_VERSION:
            _check_facts(manifest)
            sizes = {name: int(facts["bytes"]) for name, facts in manifest["files"].items()}
    except KeyError as error:
        raise StoreError(
            f"{path / MANIFEST} is damaged: it has no {error.args[0]}; prepare the corpus again"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path / MANIFEST} is damaged: {error}; prepare the corpus again") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path} has store format {quoted(version)}; this version of protein-lm reads {FORMAT_VERSION}; prepare it again"
        )
    for name, expected in sizes.items():
        if not (path / name).is_file():
            raise StoreError(f"{path} is incomplete: {name} is missing; prepare the corpus again")
        if (size := (path / name).stat().st_size) != expected:
            raise StoreError(f"{path} is damaged: {name} has {size:,} bytes instead of {expected:,}; prepare it again")
    return manifest


_FACTS = {"num_read", "num_dropped", "residue_policy", "residue_changes", "split"}


def _check_facts(manifest: dict[str, Any]) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError if a manifest lacks what its readers need."""
    for name, facts in manifest["files"].items():
        if not (is_plain_name(name) and isinstance(facts["xxh3_128"], str)):
            raise ValueError(f"it names {quoted(name)}, which is no file of this folder")
    is_joined = "parts" in manifest
    if not is_joined and (missing := ARRAYS.keys() - manifest["files"].keys()):
        raise ValueError(f"it does not list {min(missing)}")
    for numbers in manifest["splits"].values():
        for key in ("num_sequences", "num_residues"):
            int(numbers[key])
    keys = ("name", "path", "manifest_xxh3_128") if is_joined else ("name", "sha256")
    if not is_joined and (missing := _FACTS - manifest.keys()):
        raise ValueError(f"it has no {min(missing)}")
    for facts in manifest["parts" if is_joined else "sources"]:
        for key in keys:
            if not isinstance(facts[key], str):
                raise ValueError(f"{key} is {quoted(facts[key])}")


def map_array(path: Path, dtype: type) -> NDArray:
    """Map an array file as a plain array. Slicing an `np.memmap` would cost microseconds more.

    Raises:
        StoreError: it is damaged, or holds another type or shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged: {error}; prepare the corpus again") from error
    if array.ndim != 1 or array.dtype != dtype:
        raise StoreError(f"{path} is damaged: {array.dtype} of shape {array.shape}; prepare the corpus again")
    return array.view(np.ndarray)
