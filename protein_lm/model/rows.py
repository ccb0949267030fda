"""What a model is told of the rows of a batch besides their tokens."""

from typing import NamedTuple

from torch import Tensor

from protein_lm.attention.packing import Packing


class Rows(NamedTuple):
    """Padded rows have a mask, a packed row has a packing, rows that are whole sequences have neither."""

    valid_mask: Tensor | None = None
    """(B, L) boolean, True for real tokens."""
    packing: Packing | None = None
