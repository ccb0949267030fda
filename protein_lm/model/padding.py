"""Rows whose padding does not lie behind the real tokens: they are read as if it did.

Positions, neighbours and patterns of attention count from the first token of a row. Real tokens are therefore moved to the
front before a pass, in their order, and results are moved back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from protein_lm.attention.checks import check_mask


@dataclass(frozen=True)
class RealTokensFirst:
    """The order of the tokens of padded rows (B, L) in which real ones come first."""

    order: Tensor
    """(B, L) index of the token that comes to stand at each position."""
    valid_mask: Tensor
    """(B, L) boolean, True for real tokens, in this order."""

    @classmethod
    def of(cls, valid_mask: Tensor, shape: tuple[int, int]) -> "RealTokensFirst | None":
        """The order for a mask (B, L), True for real tokens; None where they come first already.

        One look at the mask per pass, which on an accelerator waits for it. In a traced pass nothing can be looked at, and
        rows are always put in order.

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
        """Values (B, L) of tokens in this order."""
        return values.gather(1, self.order)

    def back(self, hidden: Tensor, selected: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) in the order that tokens were given in.

        Args:
            hidden: those of all tokens, or (number of True, D) of those in `selected`, row by row.
            selected: (B, L) boolean, in this order.
        """
        if hidden.ndim == 3:
            return hidden.gather(1, self.order.argsort(dim=1)[..., None].expand_as(hidden))
        assert selected is not None
        starts = torch.arange(self.order.shape[0], device=self.order.device)[:, None] * self.order.shape[1]
        return hidden[(self.order + starts)[selected].argsort()]
