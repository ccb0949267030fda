"""Which residues a masked model has to predict, and what it sees in their place."""

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet


def choose_positions(length: int, fraction: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Sorted positions (k,) of the k = round(fraction × length) residues to predict, at least one."""
    count = max(1, round(fraction * length))
    return np.sort(generator.permutation(length)[:count])


def corrupt(
    residues: NDArray[np.uint8], positions: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.uint8]:
    """A copy (length,) in which 80 % of `positions` show <mask>, 10 % a random standard residue, 10 % stay as they are.

    Source: Devlin et al. 2019 (BERT), section 3.1.
    """
    corrupted = residues.copy()
    draws = generator.random(positions.size)
    corrupted[positions[draws < 0.8]] = alphabet.MASK
    random = positions[(draws >= 0.8) & (draws < 0.9)]
    corrupted[random] = alphabet.FIRST_RESIDUE + generator.integers(alphabet.NUM_STANDARD, size=random.size)
    return corrupted


def hide(residues: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy (length,) with <mask> at all `positions`: what evaluation shows, so that nothing can be copied."""
    hidden = residues.copy()
    hidden[positions] = alphabet.MASK
    return hidden
