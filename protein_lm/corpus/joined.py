"""Several token stores as one corpus, without a copy of their tokens.

A joined corpus is a folder with

| file | holds |
|---|---|
| `records.npy` | int64 (N,), numbers of its sequences among those of all parts in order, those that repeat left out |
| `splits.npy` | uint8 (N,), values of `Split` |
| `manifest.json` | where the parts lie, checksums of their manifests, sizes of the files above, checksums of their values |
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
from protein_lm.corpus.hashing import hash_letters
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import ANNOTATIONS, FORMAT_VERSION, MANIFEST, TokenStore, map_array, read_manifest
from protein_lm.errors import InputError, StoreError
from protein_lm.files.output import checksum, new_directory
from protein_lm.io.records import Annotations, Spans

_FILES = {"records.npy": np.int64, "splits.npy": np.uint8}
_READ_RECORDS = 2**12


class JoinedStore(Corpus):
    """Read access to a folder that `data join` made."""

    def __init__(self, path: Path, manifest: dict[str, Any], parts: Sequence[TokenStore]) -> None:
        self.path, self.manifest, self.parts = path, manifest, parts
        self.splits: NDArray[np.uint8] = map_array(path / "splits.npy", np.uint8)
        self._records: NDArray[np.int64] = map_array(path / "records.npy", np.int64)
        self._bounds = np.cumsum([0, *(part.num_sequences for part in parts)])
        """Where the records of each part begin and end."""
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
            place = Path(os.path.normpath(path / facts["path"]))
            if not place.is_dir():
                raise StoreError(f"{path}: its part {place} does not exist; put it back, or join again")
            part = TokenStore.open(place)
            if checksum(place / MANIFEST) != facts["manifest_xxh3_128"]:
                raise StoreError(f"{path}: its part {place} is another store than was joined; join again")
            parts.append(part)
        return cls(path, manifest, parts)

    @property
    def num_residues(self) -> int:
        """See `Corpus`."""
        return sum(numbers["num_residues"] for numbers in self.manifest["splits"].values())

    @property
    def sources(self) -> list[dict[str, Any]]:
        """See `Corpus`."""
        return [source for part in self.parts for source in part.sources]

    @property
    def identity(self) -> dict[str, str]:
        """See `Corpus`."""
        of_parts = {part["name"]: part["manifest_xxh3_128"] for part in self.manifest["parts"]}
        return {name: facts["xxh3_128"] for name, facts in self.manifest["files"].items()} | of_parts

    @property
    def groups(self) -> dict[str, range]:
        """See `Corpus`."""
        ends = np.searchsorted(self._records, self._bounds).tolist()
        names = (facts["name"] for facts in self.manifest["parts"])
        return {name: range(*span) for name, span in zip(names, pairwise(ends), strict=True)}

    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Corpus`."""
        lengths = np.empty(indices.size, dtype=np.int64)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            lengths[chosen] = self.parts[number].lengths_of(inside)
        return lengths

    def places_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Corpus`."""
        places = np.empty(indices.size, dtype=np.int64)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            places[chosen] = self.parts[number].places_of(inside) + self._token_bounds[number]
        return places

    def residues_at(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `Corpus`."""
        residues = np.empty(places.size, dtype=np.uint8)
        for number, chosen, inside in _by_part(places, self._token_bounds):
            residues[chosen] = self.parts[number].residues_at(inside)
        return residues

    def residues(self, index: int) -> NDArray[np.uint8]:
        """See `Corpus`."""
        part, inside = self._part_of(index)
        return part.residues(inside)

    def sequence_id(self, index: int) -> str:
        """See `Corpus`."""
        part, inside = self._part_of(index)
        return part.sequence_id(inside)

    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        """See `Corpus`."""
        found = Annotations.none(indices.size)
        for number, chosen, inside in _by_part(self._records[indices], self._bounds):
            of_part = self.parts[number].annotations_of(inside)
            for name in ANNOTATIONS.values():
                getattr(found, name)[chosen] = getattr(of_part, name)
        return found

    def _part_of(self, index: int) -> tuple[TokenStore, int]:
        record = int(self._records[index])
        number = int(np.searchsorted(self._bounds, record, side="right")) - 1
        return self.parts[number], record - int(self._bounds[number])


def _by_part(
    values: NDArray[np.int64], bounds: NDArray[np.int64]
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Number of each part between whose bounds some values lie, which these are, and what they are inside."""
    owners = np.searchsorted(bounds, values, side="right") - 1
    found = []
    for number in np.unique(owners).tolist():
        chosen = np.flatnonzero(owners == number)
        found.append((number, chosen, values[chosen] - bounds[number]))
    return found


def open_corpus(path: Path) -> Corpus:
    """Open a folder that `data prepare` or `data join` made.

    Raises:
        StoreError: there is no such folder, or it is incomplete, damaged or of another format version.
    """
    return JoinedStore.open(path) if "parts" in read_manifest(path) else TokenStore.open(path)


def _stores_of(path: Path) -> Sequence[TokenStore]:
    return JoinedStore.open(path).parts if "parts" in read_manifest(path) else [TokenStore.open(path)]


def join(paths: Sequence[Path], output: Path) -> dict[str, Any]:
    """Make one corpus of several and return its manifest.

    Of sequences with the same residues the first is kept, in the order of the parts; it keeps its split, so that what is kept
    back by an earlier part is not trained on by way of a later one. Memory does not grow with the corpus, but for a bit per
    sequence.

    Args:
        paths: folders that `data prepare` or `data join` made; of the latter, their parts are taken.
        output: the folder to make.

    Raises:
        StoreError: a part cannot be opened.
        InputError: two parts have the same name, or an identifier stands for different residues.
        OutputError: the output exists already or cannot be written.
    """
    parts = [part for path in paths for part in _stores_of(path)]
    names = [name for part in parts for name in part.groups]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two stores are called {min(repeated)}; name each store once, or rename a folder")
    with new_directory(output) as folder, ThreadPoolExecutor(1) as disk, ExitStack() as stack:
        repeats = _repeats(parts, folder)
        files = {
            name: stack.enter_context(closing(ArrayFile(folder / name, dtype, disk))) for name, dtype in _FILES.items()
        }
        first, splits = 0, {split.label: {"num_sequences": 0, "num_residues": 0} for split in Split}
        for part in parts:
            for block in part.blocks():
                block = block[~repeats.has(block + first)]
                files["records.npy"].append(block + first)
                files["splits.npy"].append(part.splits[block])
                _count(splits, part.splits[block], part.lengths_of(block))
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
            "splits": splits,
            "files": {name: file.complete() for name, file in files.items()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _repeats(parts: Sequence[TokenStore], folder: Path) -> RecordSet:
    """Which sequences repeat earlier ones, numbered over all parts."""
    sequences, identifiers = Ledger(folder, "sequences"), Ledger(folder, "identifiers")
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
    """Refuse an identifier that stands for two sequences; once more for the same sequence is a duplicate sequence."""
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


def _count(splits: dict[str, dict[str, int]], of_sequences: NDArray[np.uint8], lengths: NDArray[np.int64]) -> None:
    for split in Split:
        chosen = of_sequences == split
        splits[split.label]["num_sequences"] += int(chosen.sum())
        splits[split.label]["num_residues"] += int(lengths[chosen].sum())
