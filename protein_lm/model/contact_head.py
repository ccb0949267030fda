"""The contact head that ESM-2 comes with: a logistic regression on the attention of all layers and heads.

Source: Rao et al. 2021 (Transformer protein language models are unsupervised structure learners, ICLR).
"""

from torch import nn


class ContactHead(nn.Module):
    """A weight for each layer and head, and a bias; `analysis.contacts` computes with them, and training keeps them."""

    def __init__(self, num_matrices: int) -> None:
        super().__init__()
        self.regression = nn.Linear(num_matrices, 1).requires_grad_(False)
