"""Embeddings of k-mers: short runs of residues looked up in hashed tables and added to the token embedding.

They hold the statistics of short motifs without any matrix product, which a small model on a small budget would otherwise
spend most of its training on to discover. Source: Huang et al. 2025 (Over-Tokenized Transformer, arXiv 2501.16975).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protein_lm import alphabet
from protein_lm.attention.packing import Packing

MULTIPLIER, PRIME = 2654435761, 4294967291
"""Knuth's multiplicative hash, and the largest prime below 2³²."""


class KmerEmbedding(nn.Module):
    """For each token the sum over k of a table row chosen by the k tokens that end with it; the future is never seen.

    Before the start of a sequence stands <pad>. Different k-mers may share a row: tables have a fixed number of buckets.
    """

    def __init__(self, sizes: Sequence[int], buckets: int, width: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.buckets = buckets
        self.tables = nn.ModuleList(nn.Embedding(buckets, width) for _ in self.sizes)

    @property
    def context(self) -> int:
        """Tokens before the first new one that `forward` must be given to go on with a sequence."""
        return max(self.sizes) - 1

    def forward(self, tokens: Tensor, *, packing: Packing | None = None, before: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L), which follow `before` (B, context) if that is given."""
        rows = [
            table(self.bucket(tokens, size, packing=packing, before=before))
            for size, table in zip(self.sizes, self.tables, strict=True)
        ]
        return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]

    def bucket(
        self, tokens: Tensor, size: int, *, packing: Packing | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Table row (B, L) of the k-mer that ends at each of the tokens (B, L)."""
        length = tokens.shape[1]
        if before is None:
            padded = nn.functional.pad(tokens, (size - 1, 0), value=alphabet.PAD)
        else:
            padded = torch.cat((before[:, before.shape[1] - (size - 1) :], tokens), dim=1)
        code = torch.zeros_like(tokens)
        for place in range(size):
            neighbours = padded[:, place : place + length]
            if packing is not None and (offset := place - (size - 1)):
                neighbours = neighbours.where(packing.has_neighbour(offset, tokens.device), alphabet.PAD)
            code = code * alphabet.VOCABULARY_SIZE + neighbours
        return (code * MULTIPLIER % PRIME) % self.buckets
