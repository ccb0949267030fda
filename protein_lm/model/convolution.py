"""A short convolution over neighbouring tokens, one filter per channel, in front of attention.

Linear attention is poor at picking out exact neighbours, which is where short-range sequence statistics are; a few
taps per layer give it them at hardly any cost. Sources: So et al. 2021 (Primer, arXiv 2109.08668); Poli et al. 2023
(Hyena, arXiv 2302.10866).
"""

import torch
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """Adds to each token a weighted sum of the `taps` tokens that end with it (causal) or surround it."""

    def __init__(self, width: int, taps: int, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, width))
        self.first_offset = taps - 1 if causal else (taps - 1) // 2

    def forward(self, hidden: Tensor, valid_mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); padded tokens, False in valid_mask (B, L), add nothing to others."""
        source = hidden if valid_mask is None else hidden * valid_mask.unsqueeze(-1)
        length, taps = hidden.shape[1], self.weight.shape[0]
        before = self.first_offset
        padded = nn.functional.pad(source, (0, 0, before, taps - 1 - before))
        for tap in range(taps):
            hidden = torch.addcmul(hidden, padded[:, tap : tap + length], self.weight[tap].to(hidden.dtype))
        return hidden
