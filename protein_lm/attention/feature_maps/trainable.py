"""Trainable kernels: small feed-forward networks as feature maps, one per layer, shared by queries and keys.

Weights are per head, (H, E, ·), and begin orthogonal. They map E channels to E features (2 E for Hedgehog).

Sources: Yorsh & Kovalenko 2022 (arXiv 2211.04076); Zhang et al. 2024 (Hedgehog, arXiv 2402.04347).
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.feature_maps.generalized import LEAST_EXPONENT
from protein_lm.attention.feature_maps.performer import FeatureMap


class FeedForwardFeatures(FeatureMap):
    """A stack of linear or gated layers that ends in a softplus.

    Ungated: Softplus(x W). Gated: Softplus(x F) ⊙ σ(x G) in the last layer, x F ⊙ σ(x G) in those before it.
    """

    heads_are_uniform = False

    def __init__(
        self,
        num_heads: int,
        head_width: int,
        *,
        num_layers: int = 1,
        gated: bool = False,
        low_rank_gates: bool = False,
        orthogonal: bool = False,
    ) -> None:
        """Build the network.

        Args:
            num_heads: H.
            head_width: E.
            num_layers: layers of the network.
            gated: whether layers have gates.
            low_rank_gates: whether G is a product of (E, E/4) and (E/4, E).
            orthogonal: whether a penalty keeps W and F orthogonal.
        """
        super().__init__()
        self.num_features = head_width
        self._orthogonal = orthogonal
        shape = num_heads, head_width, head_width
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(num_layers))
        """W or F of each layer, (H, E, E)."""
        self.gates = nn.ParameterList()
        """G of each layer, as one factor (H, E, E) or two."""
        for _ in range(num_layers if gated else 0):
            inner = [head_width, max(1, head_width // 4), head_width] if low_rank_gates else [head_width, head_width]
            self.gates.extend(
                nn.Parameter(torch.empty(num_heads, rows, columns)) for rows, columns in itertools.pairwise(inner)
            )
        self._factors = 2 if low_rank_gates else 1
        self.initialize(torch.Generator().manual_seed(0))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every matrix orthogonal (or with orthogonal rows or columns), head by head."""
        for weight in self.parameters():
            for head in weight:
                nn.init.orthogonal_(head, generator=generator)

    def orthogonal_weights(self) -> list[Tensor]:
        return list(self.weights) if self._orthogonal else []

    def query_features(self, query: Tensor) -> Tensor:
        rows = query
        last = len(self.weights) - 1
        for number, weight in enumerate(self.weights):
            inner = rows @ weight.to(rows.dtype)
            if number == last:
                inner = functional.softplus(inner.clamp_min(LEAST_EXPONENT))
            rows = inner * self._gate(number, rows) if len(self.gates) else inner
        return rows

    def _gate(self, number: int, rows: Tensor) -> Tensor:
        """σ(x G) of a layer for its input x (B, H, L, E)."""
        start = number * self._factors
        for factor in self.gates[start : start + self._factors]:
            rows = rows @ factor.to(rows.dtype)
        return torch.sigmoid(rows.clamp_min(LEAST_EXPONENT))


class HedgehogFeatures(FeatureMap):
    """softmax of [x W, -x W] over these 2 E features; W begins as the identity."""

    heads_are_uniform = False

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_features = 2 * head_width
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, head_width))
        self.initialize(torch.Generator())

    def initialize(self, generator: torch.Generator) -> None:
        """Set W to the identity; nothing is drawn."""
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.weight.shape[-1]).expand_as(self.weight))

    def query_features(self, query: Tensor) -> Tensor:
        rows = query @ self.weight.to(query.dtype)
        exponent = torch.cat((rows, -rows), dim=-1)
        # The largest exponent becomes 0. The least one is bounded, so that no product of two features is 0.
        exponent = (exponent - exponent.detach().amax(-1, keepdim=True)).clamp_min(LEAST_EXPONENT)
        features = exponent.exp()
        return features / features.sum(-1, keepdim=True)
