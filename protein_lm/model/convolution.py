"""A short convolution over neighbouring tokens, one filter per channel, in front of attention.

Linear attention is poor at picking out exact neighbours, which is where short-range sequence statistics are; a few
taps per layer give it them at hardly any cost. Sources: So et al. 2021 (Primer, arXiv 2109.08668); Poli et al. 2023
(Hyena, arXiv 2302.10866).
"""

import torch
from torch import Tensor, nn

from protein_lm.attention.rows import Rows


class ShortConvolution(nn.Module):
    """Adds to each token a weighted sum of the `taps` tokens that end with it (causal) or surround it."""

    def __init__(self, width: int, taps: int, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, width))
        self.first_offset = taps - 1 if causal else (taps - 1) // 2

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D); padded tokens and other sequences of a packed row add nothing."""
        taps, length = self.weight.shape[0], hidden.shape[1]
        source = hidden if rows.valid_mask is None else hidden * rows.valid_mask.unsqueeze(-1)
        around = self.first_offset, taps - 1 - self.first_offset
        if rows.part is None:
            padded = nn.functional.pad(source, (0, 0, *around))
        else:
            padded = rows.part.with_neighbours(source, *around)
        result = hidden
        for tap in range(taps):
            neighbours = padded[:, tap : tap + length]
            if rows.packing is not None and (offset := tap - self.first_offset):
                neighbours = neighbours * rows.packing.has_neighbour(offset, hidden.device).unsqueeze(-1)
            result = torch.addcmul(result, neighbours, self.weight[tap].to(hidden.dtype))
        return result

    def extend(self, hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens (B, S, D) of a causal model behind the `taps - 1` tokens `before`; also the next call's `before`."""
        taps, length = self.weight.shape[0], hidden.shape[1]
        source = torch.cat((before, hidden), dim=1)
        result = hidden
        for tap in range(taps):
            result = torch.addcmul(result, source[:, tap : tap + length], self.weight[tap].to(hidden.dtype))
        return result, source[:, length:]
