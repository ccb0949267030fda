"""Several token stores as one corpus, without a copy of their tokens.

All sequences of all parts, in order, are numbered from 0: a sequence's record. A joined corpus is a folder with

| file | contents |
|---|---|
| `records.npy` | int64 (N,), records of its sequences: all that repeat no earlier one |
| `splits.npy` | uint8 (N,), values of `Split` |
| `manifest.json` | paths of the parts and checksums of their manifests; sizes and checksums of the files above |
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.corpus.array_file import ArrayFile
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.duplicates import Ledger, RecordSet, fingerprints
from protein_lm.corpus.split import Split, labelled_counts
from protein_lm.corpus.store import ANNOTATIONS, FORMAT_VERSION, MANIFEST, TokenStore, map_array, read_manifest
from protein_lm.errors import InputError, StoreError
from protein_lm.files.output import checksum, new_directory
from protein_lm.files.resume import WorkFolder
from protein_lm.io.hashing import hash_letters
from protein_lm.io.records import Annotations, Spans
from protein_lm.native.reader import reader

_FILES = {"records.npy": np.int64, "splits.npy": np.uint8}
_READ_RECORDS = 2**12


class JoinedStore(Corpus):
    """Reads a folder that `data join` made."""

    def __init__(self, path: Path, manifest: dict[str, Any], parts: Sequence[TokenStore]) -> None:
        self.path, self.manifest, self.parts = path, manifest, parts
        self.splits: NDArray[np.uint8] = map_array(path / "splits.npy", np.uint8)
        self._records: NDArray[np.int64] = map_array(path / "records.npy", np.int64)
        self._bounds = np.cumsum([0, *(part.num_sequences for part in parts)])
        """(parts + 1,) first record of each part, and the number of all."""
        self._token_bounds = np.cumsum([0, *(part.num_residues for part in parts)])

    @classmethod
    def open(cls, path: Path) -> "JoinedStore":
        """Open the folder that `data join` made.

        Raises:
            StoreError: it or one of its parts is missing or damaged, or a part is another than was joined.
        """
        manifest = read_manifest(path)
        parts = []
        for facts in manifest["parts"]:
            folder = Path(os.path.normpath(path / facts["path"]))
            if not folder.is_dir():
                raise StoreError(f"{path}: its part {folder} does not exist; put it back, or join again")
            part = TokenStore.open(folder)
            if checksum(folder / MANIFEST) != facts["manifest_xxh3_128"]:
                raise StoreError(f"{path}: its part {folder} is another store than was joined; join again")
            parts.append(part)
        return cls(path, manifest, parts)

    @property
    def num_residues(self) -> int:
        return sum(numbers["num_residues"] for numbers in self.manifest["splits"].values())

    @property
    def sources(self) -> list[dict[str, Any]]:
        return [source for part in self.parts for source in part.sources]

    @property
    def identity(self) -> dict[str, str]:
        parts = {part["name"]: part["manifest_xxh3_128"] for part in self.manifest["parts"]}
        return {name: facts["xxh3_128"] for name, facts in self.manifest["files"].items()} | parts

    @property
    def groups(self) -> dict[str, range]:
        ends = np.searchsorted(self._records, self._bounds).tolist()
        names = (facts["name"] for facts in self.manifest["parts"])
        return {name: range(*span) for name, span in zip(names, pairwise(ends), strict=True)}

    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = np.empty(indices.size, dtype=np.int64)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            lengths[chosen] = self.parts[number].lengths_of(inside)
        return lengths

    def offsets_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        offsets = np.empty(indices.size, dtype=np.int64)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            offsets[chosen] = self.parts[number].offsets_of(inside) + self._token_bounds[number]
        return offsets

    def residues_at(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        residues = np.empty(offsets.size, dtype=np.uint8)
        for number, chosen, inside in _by_part(offsets, self._token_bounds):
            residues[chosen] = self.parts[number].residues_at(inside)
        return residues

    def residues(self, index: int) -> NDArray[np.uint8]:
        part, inside = self._part_of(index)
        return part.residues(inside)

    def sequence_id(self, index: int) -> str:
        part, inside = self._part_of(index)
        return part.sequence_id(inside)

    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        annotations = Annotations.none(indices.size)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            part = self.parts[number].annotations_of(inside)
            for name in ANNOTATIONS.values():
                getattr(annotations, name)[chosen] = getattr(part, name)
        return annotations

    def _part_of(self, index: int) -> tuple[TokenStore, int]:
        """Return the part of a sequence, and its index there."""
        record = int(self._records[index])
        number = int(np.searchsorted(self._bounds, record, side="right")) - 1
        return self.parts[number], record - int(self._bounds[number])


def _by_part(
    values: NDArray[np.int64], bounds: NDArray[np.int64]
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Sort records or offsets (N,) by part, given the bounds (parts + 1,) of the parts.

    Returns:
        For each part that has any: its number, the indices (K,) of its values, and these values counted from its bound (K,).
    """
    owners = np.searchsorted(bounds, values, side="right") - 1  # (N,) number of the part
    by_part = []
    for number in np.unique(owners).tolist():
        chosen = np.flatnonzero(owners == number)
        by_part.append((number, chosen, values[chosen] - bounds[number]))
    return by_part


def open_corpus(path: Path) -> Corpus:
    """Open a folder that `data prepare` or `data join` made.

    Raises:
        StoreError: there is no such folder, or it is incomplete, damaged or of another format version.
    """
    return JoinedStore.open(path) if "parts" in read_manifest(path) else TokenStore.open(path)


def stores_of(corpus: Corpus) -> Sequence[TokenStore]:
    """Return the stores that a corpus consists of."""
    if isinstance(corpus, JoinedStore):
        return corpus.parts
    return [corpus] if isinstance(corpus, TokenStore) else []


def join(paths: Sequence[Path], output: Path) -> dict[str, Any]:
    """Make one corpus of several and return its manifest.

    The first of sequences with the same residues is kept, in the order of the parts. It keeps its split: a sequence that an
    earlier part keeps back is not trained on by way of a later one. Memory grows by a bit per sequence.

    Args:
        paths: folders that `data prepare` made, or `data join`, whose parts are taken.
        output: the folder to make.

    Raises:
        StoreError: a part cannot be opened.
        InputError: two parts have the same name, or an identifier stands for different residues.
        OutputError: the output exists already or cannot be written.
    """
    corpora = [open_corpus(path) for path in paths]
    parts = [part for corpus in corpora for part in stores_of(corpus)]
    names = [name for part in parts for name in part.groups]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two stores are called {min(repeated)}; name each store once, or rename a folder")
    with new_directory(output) as folder, ThreadPoolExecutor(1) as disk, ExitStack() as stack:
        with closing(WorkFolder(folder)) as work:
            repeats = _repeats(parts, work)
        files = {
            name: stack.enter_context(closing(ArrayFile(folder / name, dtype, disk))) for name, dtype in _FILES.items()
        }
        first, counts = 0, np.zeros((2, len(Split)), dtype=np.int64)
        for part in parts:
            if part.splits.max(initial=0) >= len(Split):
                raise StoreError(f"{part.path} is damaged: splits.npy has an impossible value; prepare it again")
            for block in part.blocks():
                block = block[~repeats.has(block + first)]  # indices in the part; records begin at `first`
                files["records.npy"].append(block + first)
                files["splits.npy"].append(part.splits[block])
                counts += reader().tally(part.splits[block], part.lengths_of(block), len(Split))
            first += part.num_sequences
        manifest = {
            "format_version": FORMAT_VERSION,
            "protein_lm_version": __version__,
            "parts": [
                {
                    "name": name,
                    "path": os.path.relpath(part.path.resolve(), output.resolve()),
                    "manifest_xxh3_128": checksum(part.path / MANIFEST),
                }
                for name, part in zip(names, parts, strict=True)
            ],
            "num_dropped": {"duplicate_sequence": repeats.num_members},
            "splits": labelled_counts(counts),
            "files": {name: file.complete() for name, file in files.items()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _repeats(parts: Sequence[TokenStore], work: WorkFolder) -> RecordSet:
    """Return the records of sequences that repeat earlier ones."""
    sequences, identifiers = Ledger(work, "sequences"), Ledger(work, "identifiers")
    first = 0
    for part in parts:
        for block in part.blocks(_READ_RECORDS):
            residues = Spans.back_to_back(part.tokens_of(block).tobytes(), part.lengths_of(block)).cut()
            prints = fingerprints(residues)
            sequences.add(prints[:, 0], prints[:, 1], first + int(block[0]))
            identifiers.add(_id_hashes(part, block), prints[:, 0], first + int(block[0]))
        first += part.num_sequences
    if (suspects := identifiers.conflicts()).size:
        _refuse_identifier(suspects, parts)
    repeats = RecordSet(first)
    for records, _ in sequences.repeats():
        repeats.add(records)
    sequences.remove()
    identifiers.remove()
    return repeats


def _id_hashes(part: TokenStore, block: NDArray[np.int64]) -> NDArray[np.uint64]:
    ends = part.id_offsets[block[0] : block[-1] + 2]
    return hash_letters(part.ids[ends[0] : ends[-1]], np.diff(ends))


def _refuse_identifier(suspects: NDArray[np.uint64], parts: Sequence[TokenStore]) -> None:
    """Refuse an identifier of two different sequences. If the sequences are the same, one is a duplicate."""
    seen: dict[str, tuple[TokenStore, bytes]] = {}
    for part in parts:
        for block in part.blocks(_READ_RECORDS):
            for index in block[np.isin(_id_hashes(part, block), suspects)].tolist():
                identifier, residues = part.sequence_id(index), part.residues(index).tobytes()
                earlier, earlier_residues = seen.setdefault(identifier, (part, residues))
                if residues != earlier_residues:
                    raise InputError(
                        f"sequence {identifier} has other residues in {part.path} than in {earlier.path}; "
                        "prepare one of them without it"
                    )
