"""What attention is told of the rows of a batch besides queries, keys and values."""

from typing import NamedTuple

from torch import Tensor

from protein_lm.attention.packing import Packing


class Rows(NamedTuple):
    """Padded rows have a mask, a packed row has a packing, rows that are whole sequences have neither."""

    valid_mask: Tensor | None = None
    """(B, L) boolean, True for real tokens: others are seen by none."""
    packing: Packing | None = None
    """The sequences of a packed row, which do not see each other."""


WHOLE = Rows()
"""Rows that are whole sequences."""
