"""Layers that only ESM-2 has: token dropout, a transform of its outputs, and a contact head.

Source: Lin et al. 2023 (ESM-2), its code in fair-esm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.attention.rows import Rows

HIDDEN_IN_TRAINING = 0.15 * 0.8
"""Share of residues hidden in training: 15 % are chosen, and 80 % of the chosen ones are hidden."""


def embedding_scale(tokens: Tensor, rows: Rows) -> Tensor:
    """Return the factors (B, L, 1) of ESM-2's token dropout for the embeddings of whole rows (B, L).

    The factor is 0 at <mask>. All other tokens of a sequence share one factor: the share of tokens that training leaves over
    the share that is left here. It keeps the size of the sum of embeddings, in use as in training.
    """
    hidden = tokens == alphabet.MASK
    if rows.packing is not None:
        owners = torch.from_numpy(rows.packing.sequences).to(tokens.device)
        num_tokens = torch.bincount(owners)
        num_left = torch.bincount(owners[~hidden[0]], minlength=len(num_tokens))
        factors = _factors(num_tokens, num_left)[owners][None]
    else:
        valid = torch.ones_like(hidden) if rows.valid_mask is None else rows.valid_mask
        factors = _factors(valid.sum(1), (valid & ~hidden).sum(1))[:, None]
    return factors.masked_fill(hidden, 0.0)[..., None]


def _factors(num_tokens: Tensor, num_left: Tensor) -> Tensor:
    """Factors of sequences of which `num_left` of `num_tokens` tokens are not hidden; where none is left, any number."""
    return (1 - HIDDEN_IN_TRAINING) * num_tokens / num_left.clamp_min(1)


class OutputTransform(nn.Module):
    """A dense layer, GELU and a norm between final hidden states and logits: the head of RoBERTa (arXiv 1907.11692)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.norm(functional.gelu(self.dense(hidden)))


class ContactHead(nn.Module):
    """A logistic regression on the attention of all layers and heads: a weight for each, and a bias.

    `analysis.contacts` computes with them; training keeps them. Source: Rao et al. 2021 (Transformer protein language models
    are unsupervised structure learners, ICLR).
    """

    def __init__(self, num_matrices: int) -> None:
        super().__init__()
        self.regression = nn.Linear(num_matrices, 1).requires_grad_(False)
