"""The order of training when stores of a corpus are drawn from by weight: computed, not stored, as `order`.

Places come in blocks, of which each store gets its share, at places that a shuffle of the block chooses; from visit to visit
a store's own sequences are shuffled anew, so that none comes twice before all came once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protein_lm.batches.order import shuffled
from protein_lm.errors import ConfigError

BLOCK = 2**16
"""Places of a block: shares are exact to one of these."""


class Mixture:
    """Sequences of several groups in an endless order, each group as often as its share says."""

    def __init__(self, groups: Sequence[range], shares: Sequence[float], seed: int) -> None:
        """Apportion a block.

        Args:
            groups: consecutive numbers of the sequences of each group.
            shares: of all places; their sum does not matter.
            seed: of the order.

        Raises:
            ConfigError: a share is too small for a place in a block.
        """
        wanted = BLOCK * np.array(shares) / np.sum(shares)
        quotas = np.floor(wanted).astype(np.int64)
        quotas[np.argsort(quotas - wanted, kind="stable")[: BLOCK - quotas.sum()]] += 1
        if not quotas.all():
            raise ConfigError(
                f"data.weights: the least of them is under 1/{BLOCK:,} of all places; raise it, or leave it out"
            )
        self._groups, self._quotas, self._seed = groups, quotas, seed
        self._ends = np.cumsum(quotas)

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(P,) sequences at consecutive places, and how often their group was gone through before."""
        blocks, within = np.divmod(places, BLOCK)
        indices, visits = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            owners = np.searchsorted(self._ends, shuffled(np.arange(BLOCK), BLOCK, self._seed, block), side="right")
            for number, quota in enumerate(self._quotas.tolist()):
                is_drawn = owners == number
                draws = block * quota + np.cumsum(is_drawn) - 1
                chosen = is_drawn[within[here]]
                indices[here[chosen]], visits[here[chosen]] = self._drawn(number, draws[within[here[chosen]]])
        return indices, visits

    def _drawn(self, number: int, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        group = self._groups[number]
        visits, places = np.divmod(draws, len(group))
        indices = np.empty_like(draws)
        for visit in np.unique(visits).tolist():
            chosen = visits == visit
            indices[chosen] = group.start + shuffled(places[chosen], len(group), self._seed, visit, number)
        return indices, visits
