"""64-bit hashes of identifiers, the same on every machine and for ever.

A hash chains the finalizer of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) over the identifier's
UTF-8 bytes, eight at a time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protein_lm.native.numpy_reader import mix

_WORD = 8


def hash_identifiers(identifiers: Sequence[bytes]) -> NDArray[np.uint64]:
    """(N,) a stable hash of each identifier (UTF-8).

    >>> hash_identifiers([b"P62593", b"an identifier of more than 8 bytes"]).tolist()
    [18165176883260203319, 779016990599954600]
    """
    lengths = np.fromiter(map(len, identifiers), dtype=np.int64, count=len(identifiers))
    return hash_letters(np.frombuffer(b"".join(identifiers), dtype=np.uint8), lengths)


def hash_letters(letters: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(N,) hashes of identifiers whose bytes are back to back; `lengths` (N,) are their bytes."""
    starts = np.cumsum(lengths) - lengths  # (N,)
    padded = np.concatenate((letters, np.zeros(_WORD, dtype=np.uint8)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WORD)  # (letters + 1, 8), the 8 bytes from each on
    hashes = mix(lengths.astype(np.uint64))
    longer, offset = np.flatnonzero(lengths), 0  # (M,) identifiers with more than `offset` bytes
    while longer.size:
        words = windows[starts[longer] + offset]  # (M, 8) next bytes of those that have more
        words = np.where(np.arange(_WORD) < (lengths[longer] - offset)[:, None], words, 0).astype(np.uint8)
        hashes[longer] = mix(hashes[longer] ^ words.view("<u8")[:, 0])
        offset += _WORD
        longer = longer[lengths[longer] > offset]
    return hashes
