"""ESM's contact head: a logistic regression on the attention of all layers and heads.

Source: Rao et al. 2021 (Transformer protein language models are unsupervised structure learners).
"""

from torch import Tensor, nn


def corrected(matrices: Tensor) -> Tensor:
    """Attention (..., L, L) made symmetric, less what rows and columns receive on average (average product correction)."""
    symmetric = matrices + matrices.mT
    sums = symmetric.sum(-1, keepdim=True)
    return symmetric - sums * sums.mT / sums.sum(-2, keepdim=True)


class ContactHead(nn.Module):
    """A weight for each layer and head, and a bias. It comes with a model; training a language model leaves it as it is."""

    def __init__(self, num_matrices: int) -> None:
        super().__init__()
        self.regression = nn.Linear(num_matrices, 1).requires_grad_(False)

    def forward(self, matrices: Tensor) -> Tensor:
        """Probabilities (R, R) that two residues touch, of the attention (layers, heads, R, R) of residues to residues.

        That of <cls> and <eos> is left out, and rows need not sum to 1.
        """
        features = corrected(matrices.flatten(0, 1)).permute(1, 2, 0)
        return self.regression(features).squeeze(-1).sigmoid()
