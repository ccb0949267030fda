"""Whether a store still holds what was written."""

from collections.abc import Callable

import numpy as np

from protein_lm.alphabet import FIRST_RESIDUE, NUM_RESIDUES
from protein_lm.data.split import Split
from protein_lm.data.store import ARRAYS, TokenStore
from protein_lm.errors import StoreError
from protein_lm.output import checksum

_SCANNED = 2**24


def verify(store: TokenStore, on_progress: Callable[[int], None] | None = None) -> int:
    """Compare every file with its checksum, and look whether its values can be; returns the bytes read.

    Raises:
        StoreError: a file is not what was written; the first one is named.
    """
    done = 0
    for name in ARRAYS:
        facts = store.manifest["files"][name]
        if (found := checksum(store.path / name)) != facts["xxh3_128"]:
            raise StoreError(
                f"{store.path} is damaged: {name} has checksum {found} instead of {facts['xxh3_128']}; copy it again, or "
                "prepare the corpus again"
            )
        done += facts["bytes"]
        if on_progress:
            on_progress(done)
    for name, is_impossible in (
        ("tokens.npy", lambda part: (part < FIRST_RESIDUE) | (part >= FIRST_RESIDUE + NUM_RESIDUES)),
        ("splits.npy", lambda part: part > max(Split)),
        ("offsets.npy", lambda part: np.diff(part, prepend=part[:1]) < 0),
    ):
        values = getattr(store, name.removesuffix(".npy"))
        for start in range(0, values.size, _SCANNED):
            if (wrong := is_impossible(values[max(0, start - 1) : start + _SCANNED])).any():
                place = max(0, start - 1) + int(np.argmax(wrong))
                raise StoreError(
                    f"{store.path} is damaged: {name} has an impossible value at {place:,}; prepare it again"
                )
    return done
