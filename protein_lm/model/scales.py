"""Factors of the channels of queries and keys, head by head, that can be made part of a layer's projections.

A rotation of pairs of channels commutes with a factor that both have, so with rotary positions there is one for each pair:
then they go into the projections in front of the rotation, and cost nothing.
"""

import torch
from torch import Tensor, nn

from protein_lm.model.block import AttentionLayer

LEAST = 1e-12


class QueryKeyScales(nn.Module):
    """Factors of queries and of keys; 1 at first."""

    def __init__(self, num_heads: int, head_width: int, *, in_pairs: bool) -> None:
        """`in_pairs`: channels i and i + E/2 have the same, for rotary positions."""
        super().__init__()
        self._repeats = 2 if in_pairs else 1
        shape = num_heads, head_width // self._repeats
        self.log_query = nn.Parameter(torch.zeros(shape))
        self.log_key = nn.Parameter(torch.zeros(shape))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, H, L, E), positions applied, times their factors."""
        of_query, of_key = self._factors()
        return query * of_query[:, None], key * of_key[:, None]

    @torch.no_grad()
    def balance(self, query: Tensor, key: Tensor) -> None:
        """Make mean squares of queries and keys (H, N, E) equal, by which random features estimate their softmax best.

        No product changes: a key is divided by what a query is multiplied by, Ψ = (Σk² / Σq²)^(1/4).
        Source: Likhosherstov et al. 2023 (FAVOR#, arXiv 2302.00787), section 3; head by head, and in pairs, is ours.
        """
        of_query, of_key = (
            rows.square().mean(1).unflatten(-1, (self._repeats, -1)).sum(-2).clamp_min(LEAST) for rows in (query, key)
        )
        self.log_query.copy_((of_key / of_query).log() / 4)
        self.log_key.copy_(-self.log_query)

    @torch.no_grad()
    def fold_into(self, layer: AttentionLayer) -> None:
        """Change the projections of a layer (queries and keys of its own, not normalized) by these factors."""
        factors = torch.cat([each.flatten() for each in self._factors()])
        projection = layer.input_projection
        projection.weight[: factors.numel()] *= factors[:, None]
        projection.bias[: factors.numel()] *= factors

    def _factors(self) -> tuple[Tensor, Tensor]:
        """(H, E) of queries and of keys."""
        return self.log_query.exp().repeat(1, self._repeats), self.log_key.exp().repeat(1, self._repeats)
