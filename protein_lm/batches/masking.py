"""Which residues a masked model has to predict, and what it sees in their place."""

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet


def choose_positions(length: int, fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Sorted positions (k,) of the k = round(fraction × length) residues to predict, at least one."""
    count = max(1, round(fraction * length))
    return np.sort(generator.permutation(length)[:count])


def drawn(draws: NDArray[np.uint64], lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(sum of counts,) the residues with the least draws of each sequence, by place among all; ordered by sequence and draw.

    Args:
        draws: (L,) random numbers, of N sequences back to back; 24 bits count, of equals the first.
        lengths: (N,) residues of each sequence.
        counts: (N,) how many of each are wanted, no more than it has.
    """
    owners = np.repeat(np.arange(lengths.size), lengths)
    within = np.arange(owners.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    owners = owners.astype(np.uint16) if lengths.size <= 2**16 else owners
    order = np.argsort((draws >> np.uint64(40)).astype(np.uint8), kind="stable")  # columns of 8 and 16 bits are
    for column in ((draws >> np.uint64(48)).astype(np.uint16), owners):  # sorted without a comparison
        order = order[np.argsort(column[order], kind="stable")]
    return order[within < np.repeat(counts, lengths)]


def corrupted(residues: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What a model sees of residues (k,) to predict: 80 % <mask>, 10 % a random standard residue, 10 % as they are.

    Source: Devlin et al. 2019 (BERT), section 3.1.

    Args:
        residues: (k,) token ids.
        draws: (k,) random numbers.
    """
    tenths, residue = (draws >> np.uint64(32)) % np.uint64(10), (draws & np.uint64(2**32 - 1)) % np.uint64(20)
    random = alphabet.FIRST_RESIDUE + residue.astype(np.int64)
    return np.where(tenths < 8, alphabet.MASK, np.where(tenths == 8, random, residues))


def hide(residues: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy (length,) with <mask> at all `positions`: what evaluation shows, so that nothing can be copied."""
    hidden = residues.copy()
    hidden[positions] = alphabet.MASK
    return hidden
