"""Checks that a corpus still holds what was written."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protein_lm.alphabet import FIRST_RESIDUE, NUM_RESIDUES
from protein_lm.corpus.array_file import checksum_of_values
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import JoinedStore, stores_of
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import StoreError

_SCANNED = 2**24


def files_of(corpus: Corpus) -> list[Path]:
    """Return the files that `verify` reads."""
    return [folder / name for folder, files in _folders(corpus) for name in files]


def verify(corpus: Corpus, on_progress: Callable[[int], None] | None = None) -> int:
    """Compare every file with its checksum, check its values, and return the bytes read.

    Raises:
        StoreError: a file is not as it was written; the message names the first one.
    """
    done = 0
    for folder, files in _folders(corpus):
        for name, facts in files.items():
            if (found := checksum_of_values(folder / name)) != facts["xxh3_128"]:
                fault = (
                    f"checksum {found} instead of {facts['xxh3_128']}" if found else "another header than it was given"
                )
                raise StoreError(f"{folder} is damaged: {name} has {fault}; copy it again, or make it again")
            done += facts["bytes"]
            if on_progress:
                on_progress(done)
    for store in stores_of(corpus):
        _check_values(store)
    return done


def _folders(corpus: Corpus) -> Iterator[tuple[Path, dict[str, dict]]]:
    """Yield each folder, and the list of files in its manifest."""
    if isinstance(corpus, JoinedStore):
        yield corpus.path, corpus.manifest["files"]
    for store in stores_of(corpus):
        yield store.path, store.manifest["files"]


def _check_values(store: TokenStore) -> None:
    for name, is_impossible in (
        ("tokens.npy", lambda part: (part < FIRST_RESIDUE) | (part >= FIRST_RESIDUE + NUM_RESIDUES)),
        ("splits.npy", lambda part: part > max(Split)),
        ("offsets.npy", lambda part: np.diff(part, prepend=part[:1]) < 0),
    ):
        values = getattr(store, name.removesuffix(".npy"))
        for start in range(0, values.size, _SCANNED):
            if (wrong := is_impossible(values[max(0, start - 1) : start + _SCANNED])).any():
                index = max(0, start - 1) + int(np.argmax(wrong))
                raise StoreError(
                    f"{store.path} is damaged: {name} has an impossible value at {index:,}; prepare it again"
                )
