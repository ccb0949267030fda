"""What ESM-2 puts between its final hidden states and the projection to logits.

Source: Lin et al. 2023 (ESM-2), its code in fair-esm; the head of RoBERTa (Liu et al. 2019, arXiv 1907.11692).
"""

from torch import Tensor, nn
from torch.nn import functional


class OutputTransform(nn.Module):
    """A dense layer, GELU and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.norm(functional.gelu(self.dense(hidden)))
