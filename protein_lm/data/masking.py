"""Which residues a masked model has to predict, and what it sees in their place."""

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet


def choose_positions(length: int, fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Sorted positions (k,) of the k = round(fraction × length) residues to predict, at least one."""
    count = max(1, round(fraction * length))
    return np.sort(generator.permutation(length)[:count])


def ranks(draws: NDArray[np.uint64], owners: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(L,) rank of each residue's draw within its sequence, for N sequences back to back: the k least are a draw of k.

    Args:
        draws: (L,) random numbers.
        owners: (L,) number of the sequence of each residue, ascending.
        lengths: (N,) residues of each sequence.
    """
    draws = draws >> np.uint64(40)
    if lengths.size <= 2**16 and owners.size <= 2**24:
        # Sorted as one number of sequence (16 bits), draw (24) and place (24): faster than to sort places by draws.
        places = np.arange(owners.size, dtype=np.uint64)
        keys = (owners.astype(np.uint64) << np.uint64(48)) | (draws << np.uint64(24)) | places
        keys.sort()
        order = (keys & np.uint64(2**24 - 1)).astype(np.int64)
    else:
        order = np.lexsort((draws, owners))  # stable, so that equal draws go by place here too
    result = np.empty(owners.size, dtype=np.int64)
    result[order] = np.arange(owners.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return result


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
