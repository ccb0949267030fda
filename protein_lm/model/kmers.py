"""Embeddings of k-mers: short runs of residues looked up in hashed tables and added to the token embedding.

They hold the statistics of short motifs without any matrix product, which a small model on a small budget would otherwise
spend most of its training on to discover. Source: Huang et al. 2025 (Over-Tokenized Transformer, arXiv 2501.16975).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protein_lm import alphabet

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

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L)."""
        rows = [table(self.bucket(tokens, size)) for size, table in zip(self.sizes, self.tables, strict=True)]
        return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]

    def bucket(self, tokens: Tensor, size: int) -> Tensor:
        """Table row (B, L) of the k-mer that ends at each of the tokens (B, L)."""
        length = tokens.shape[1]
        padded = nn.functional.pad(tokens, (size - 1, 0), value=alphabet.PAD)
        code = torch.zeros_like(tokens)
        for offset in range(size):
            code = code * alphabet.VOCABULARY_SIZE + padded[:, offset : offset + length]
        return (code * MULTIPLIER % PRIME) % self.buckets
