"""Rows whose padding does not lie behind the real tokens: these are moved to the front, and results moved back.

Positions, neighbours and patterns of attention count from the first token of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from protein_lm.attention.input_checks import check_mask


@dataclass(frozen=True)
class RealTokensFirst:
    """The order of the tokens of padded rows (B, L) in which real ones come first."""

    order: Tensor
    """(B, L) index of the token that moves to each position."""
    valid_mask: Tensor
    """(B, L) boolean, True for real tokens, in this order."""

    @classmethod
    def of(cls, valid_mask: Tensor, shape: tuple[int, int]) -> "RealTokensFirst | None":
        """Return the order for a mask (B, L), True for real tokens; None if they come first already.

        This reads the mask once per pass, and so waits for an accelerator. A traced pass cannot read it: there, rows are
        always put in order.

        Raises:
            ValueError: as `check_mask`.
        """
        if not torch.compiler.is_compiling():
            check_mask(valid_mask, shape)
            if not (valid_mask[:, 1:] & ~valid_mask[:, :-1]).any():
                return None
        order = (~valid_mask).byte().argsort(dim=1, stable=True)
        return cls(order, valid_mask.gather(1, order))

    def to_front(self, values: Tensor) -> Tensor:
        """Put values (B, L) of tokens in this order."""
        return values.gather(1, self.order)

    def back(self, hidden: Tensor, selected: Tensor | None = None) -> Tensor:
        """Put hidden states (B, L, D) back in the order in which tokens were given.

        Args:
            hidden: states of all tokens, or (number of True, D) of the tokens in `selected`, row by row.
            selected: (B, L) boolean, in this order.
        """
        if hidden.ndim == 3:
            return hidden.gather(1, self.order.argsort(dim=1)[..., None].expand_as(hidden))
        assert selected is not None
        starts = torch.arange(self.order.shape[0], device=self.order.device)[:, None] * self.order.shape[1]
        return hidden[(self.order + starts)[selected].argsort()]
