"""The order of training when the stores of a joined corpus are drawn from by weight: computed, not stored.

The order is cut into blocks. Each store gets its share of every block, at positions that a shuffle of the block chooses. The
sequences of a store are shuffled anew for each visit, so that none comes twice before all came once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protein_lm.batches.order import shuffled
from protein_lm.errors import ConfigError

BLOCK = 2**16
"""Positions of a block: shares are exact to one position."""


class Mixture:
    """Sequences of several groups in an endless order, each group as often as its share says."""

    def __init__(self, groups: Sequence[range], shares: Sequence[float], seed: int) -> None:
        """Divide a block among the groups.

        Args:
            groups: consecutive numbers of the sequences of each group.
            shares: relative number of positions of each group; their sum does not matter.
            seed: of the order.

        Raises:
            ConfigError: a share is too small for one position in a block.
        """
        # Each group gets the whole part of what it should have; those that lost most get one of the positions left over.
        wanted = BLOCK * np.array(shares) / np.sum(shares)
        quotas = np.floor(wanted).astype(np.int64)
        quotas[np.argsort(quotas - wanted, kind="stable")[: BLOCK - quotas.sum()]] += 1
        if not quotas.all():
            raise ConfigError(
                f"data.weights: the least of them is under 1/{BLOCK:,} of all positions; raise it, or leave it out"
            )
        self._groups, self._quotas, self._seed = groups, quotas, seed
        self._ends = np.cumsum(quotas)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(P,) sequences at consecutive positions, and (P,) how often their group was gone through before."""
        blocks, within = np.divmod(positions, BLOCK)
        indices, visits = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)  # (H,) indices into `positions`
            # (BLOCK,) group of each position of the block: the shuffle's first numbers are the first group's, and so on.
            owners = np.searchsorted(self._ends, shuffled(np.arange(BLOCK), BLOCK, self._seed, block), side="right")
            for number, quota in enumerate(self._quotas.tolist()):
                is_drawn = owners == number
                draws = block * quota + np.cumsum(is_drawn) - 1  # (BLOCK,) draws from this group before each position
                chosen = is_drawn[within[here]]  # (H,)
                indices[here[chosen]], visits[here[chosen]] = self._drawn(number, draws[within[here[chosen]]])
        return indices, visits

    def _drawn(self, number: int, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(D,) the sequences that some draws from a group get, and (D,) their visits."""
        group = self._groups[number]
        visits, positions = np.divmod(draws, len(group))
        indices = np.empty_like(draws)
        for visit in np.unique(visits).tolist():
            chosen = visits == visit
            indices[chosen] = group.start + shuffled(positions[chosen], len(group), self._seed, visit, number)
        return indices, visits
