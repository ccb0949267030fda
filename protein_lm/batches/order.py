"""The order of training: a shuffle of any number of sequences that is computed, not stored.

A Feistel network permutes the numbers of 2h bits, whatever its round function is. A number that lands outside 0 ... n - 1 is
sent through the network again until it lands inside. This is "cycle walking": Black and Rogaway 2002,
doi:10.1007/3-540-45760-7_9.
"""

import numpy as np
from numpy.typing import NDArray

from protein_lm.native.numpy_reader import mix

_ROUNDS = 6


def shuffled(positions: NDArray[np.int64], size: int, *key: int) -> NDArray[np.int64]:
    """The numbers (P,) at some positions of a shuffle of 0 ... size - 1 that `key` chooses.

    >>> shuffled(np.arange(8), 8, 1, 0).tolist()
    [7, 6, 0, 3, 2, 1, 5, 4]
    """
    # The network permutes numbers of 2 × `half` bits: the fewest that count to `size`, at most four times as many.
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    rounds = round_keys(_ROUNDS, *key)
    values = positions.astype(np.uint64)
    outside = np.arange(values.size)  # indices of the values that have yet to land below `size`
    while outside.size:
        values[outside] = _permuted(values[outside], half, rounds)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def round_keys(count: int, *key: int) -> NDArray[np.uint64]:
    """(count,) numbers that depend on all of `key` (each 0 to 2**64 - 1)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mix(state ^ mix(np.array([part], dtype=np.uint64)))
    return mix(state + np.arange(1, count + 1, dtype=np.uint64))


def keys_of_visits(visits: NDArray[np.int64], number: int, seed: int) -> NDArray[np.uint64]:
    """(P,) the key called `number` of (seed, visit) for each of P visits, which have few different values."""
    unique, inverse = np.unique(visits, return_inverse=True)
    return np.array([round_keys(number, seed, visit)[-1] for visit in unique.tolist()], dtype=np.uint64)[inverse]


def _permuted(values: NDArray[np.uint64], half: np.uint64, rounds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Values (P,) of 2 × `half` bits after one pass through the Feistel network."""
    ones = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & ones
    for key in rounds:
        left, right = right, left ^ (mix(right ^ key) & ones)
    return (left << half) | right
