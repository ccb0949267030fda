"""The rows of a batch as attention knows them: padding, packing, and the stretch that a process holds."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.input_checks import check_mask
from protein_lm.attention.packing import Packing
from protein_lm.attention.sequence_parallel import Group, Part


class Rows(NamedTuple):
    """Padded rows have a mask, a packed row has a packing, rows that are whole sequences have neither."""

    valid_mask: Tensor | None = None
    """(B, L) boolean, True for real tokens; no query sees the others."""
    packing: Packing | None = None
    """The sequences of a packed row, which do not see each other."""
    part: Part | None = None
    """The stretch of the rows that these tokens are. None: they are the whole rows."""

    def split(self, shape: tuple[int, int], group: Group) -> "Rows":
        """Take this process's stretch of whole rows (B, L) that a group shares.

        Raises:
            ValueError: the mask or packing does not fit the rows, or there are fewer tokens than processes.
        """
        if self.valid_mask is not None:
            check_mask(self.valid_mask, shape)
        if self.packing is not None and (self.valid_mask is not None or shape != (1, self.packing.length)):
            raise ValueError(f"the packing of {self.packing.length} tokens fits one row without mask, not rows {shape}")
        part = Part(group, shape[1], self.packing)
        return Rows(None if self.valid_mask is None else self.valid_mask[:, part.span], part.packing, part)

    def positions(self, length: int) -> Tensor:
        """(length,) position of each token in its sequence, from 0."""
        if self.packing is not None:
            return torch.from_numpy(self.packing.positions)
        start = self.part.span.start if self.part is not None else 0
        return torch.arange(start, start + length)

    def of_one_process(self) -> dict[str, Any]:
        """Return mask and packing of whole rows, for attention that cannot be split.

        Raises:
            ValueError: the rows are split.
        """
        if self.part is not None:
            raise ValueError(
                "this attention needs whole rows; only linear kinds of attention can be split over processes"
            )
        return {"valid_mask": self.valid_mask, "packing": self.packing}


WHOLE = Rows()
"""Rows that are whole sequences."""
