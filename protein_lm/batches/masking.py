"""Which residues a masked model has to predict, and which tokens it sees instead."""

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.batches.plan import numbered


def choose_positions(length: int, fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Sorted indices (K,) of the K = round(fraction × length) residues to predict, at least one."""
    count = max(1, round(fraction * length))
    return np.sort(generator.permutation(length)[:count])


def drawn(draws: NDArray[np.uint64], lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(sum of counts,) indices of the residues with the lowest draws of each sequence, ordered by sequence and draw.

    Args:
        draws: (R,) random numbers, of N sequences back to back. Only 24 bits count; of equal ones the first wins.
        lengths: (N,) residues of each sequence.
        counts: (N,) how many of each are wanted, no more than it has.
    """
    owners, within = numbered(lengths)  # (R,) sequence of each residue, and its number there
    owners = owners.astype(np.uint16) if lengths.size <= 2**16 else owners
    # Sort residues by (owner, draw): least important column first. Columns of 8 and 16 bits sort without a comparison.
    order = np.argsort((draws >> np.uint64(40)).astype(np.uint8), kind="stable")
    for column in ((draws >> np.uint64(48)).astype(np.uint16), owners):
        order = order[np.argsort(column[order], kind="stable")]
    return order[within < np.repeat(counts, lengths)]  # the first of each sequence


def corrupted(residues: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Tokens (K,) shown instead of residues to predict: 80 % <mask>, 10 % a random standard residue, 10 % the residue.

    Source: Devlin et al. 2019 (BERT), section 3.1.

    Args:
        residues: (K,) token ids.
        draws: (K,) random numbers.
    """
    tenths, residue = (draws >> np.uint64(32)) % np.uint64(10), (draws & np.uint64(2**32 - 1)) % np.uint64(20)
    random = alphabet.FIRST_RESIDUE + residue.astype(np.int64)
    return np.where(tenths < 8, alphabet.MASK, np.where(tenths == 8, random, residues))


def hide(residues: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy (L,) with <mask> at all `positions`: evaluation shows it, so that nothing can be copied."""
    hidden = residues.copy()
    hidden[positions] = alphabet.MASK
    return hidden
