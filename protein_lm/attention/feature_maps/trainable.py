"""Trainable kernels: small feed-forward networks as feature maps, one per layer, shared by queries and keys.

Their weights are per head, (H, E, ·), begin orthogonal, and map E channels to E features (2 E for Hedgehog). Sources:
Yorsh & Kovalenko 2022 (arXiv 2211.04076); Zhang et al. 2024 (Hedgehog, arXiv 2402.04347).
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.feature_maps.generalized import LEAST_EXPONENT
from protein_lm.attention.feature_maps.performer import FeatureMap


class TrainableFeatures(FeatureMap):
    """A map whose weights are drawn by `initialize`, and some of which a penalty may keep orthogonal."""

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights from `generator`."""
        raise NotImplementedError

    def orthogonal_weights(self) -> list[Tensor]:
        """Weights (H, E, E) that λ ‖WWᵀ - I‖² keeps orthogonal; none for maps without this option."""
        return []

    def key_features(self, key: Tensor) -> Tensor:
        """See `FeatureMap`; the same map as for queries."""
        return self.query_features(key)


class FeedForwardFeatures(TrainableFeatures):
    """A stack of linear or gated layers that ends in a softplus.

    Ungated: Softplus(x W). Gated: Softplus(x F) ⊙ σ(x G) in the last layer, x F ⊙ σ(x G) in those before it.
    """

    def __init__(
        self,
        num_heads: int,
        head_width: int,
        *,
        num_layers: int = 1,
        gated: bool = False,
        gate_rank: int | None = None,
        orthogonal: bool = False,
    ) -> None:
        """`gate_rank`: G is the product of (E, rank) and (rank, E); `orthogonal`: W and F are what the penalty acts on."""
        super().__init__()
        self.num_features = head_width
        self._orthogonal = orthogonal
        shape = num_heads, head_width, head_width
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(num_layers))
        """W or F of each layer, (H, E, E)."""
        self.gates = nn.ParameterList()
        """G of each layer, as one factor (H, E, E) or two."""
        for _ in range(num_layers if gated else 0):
            inner = [head_width, head_width] if gate_rank is None else [head_width, gate_rank, head_width]
            self.gates.extend(
                nn.Parameter(torch.empty(num_heads, rows, columns)) for rows, columns in itertools.pairwise(inner)
            )
        self._factors = 1 if gate_rank is None else 2
        self.initialize(torch.Generator().manual_seed(0))

    def initialize(self, generator: torch.Generator) -> None:
        """See `TrainableFeatures`: every matrix orthogonal (or with orthogonal rows or columns), head by head."""
        for weight in self.parameters():
            for head in weight:
                nn.init.orthogonal_(head, generator=generator)

    def orthogonal_weights(self) -> list[Tensor]:
        """See `TrainableFeatures`."""
        return list(self.weights) if self._orthogonal else []

    def query_features(self, query: Tensor) -> Tensor:
        """See `FeatureMap`."""
        rows = query
        last = len(self.weights) - 1
        for number, weight in enumerate(self.weights):
            inner = rows @ weight.to(rows.dtype)
            if number == last:
                inner = functional.softplus(inner.clamp_min(LEAST_EXPONENT))
            rows = inner * self._gate(number, rows) if len(self.gates) else inner
        return rows

    def _gate(self, number: int, rows: Tensor) -> Tensor:
        start = number * self._factors
        for factor in self.gates[start : start + self._factors]:
            rows = rows @ factor.to(rows.dtype)
        return torch.sigmoid(rows.clamp_min(LEAST_EXPONENT))


class HedgehogFeatures(TrainableFeatures):
    """softmax of [x W, -x W] over these 2 E features; W begins as the identity."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_features = 2 * head_width
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, head_width))
        self.initialize(torch.Generator())

    def initialize(self, generator: torch.Generator) -> None:
        """See `TrainableFeatures`; nothing is drawn."""
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.weight.shape[-1]).expand_as(self.weight))

    def query_features(self, query: Tensor) -> Tensor:
        """See `FeatureMap`."""
        rows = query @ self.weight.to(query.dtype)
        exponent = torch.cat((rows, -rows), dim=-1)
        # The largest is subtracted from all: exponents are held from below, so that no product of two features is 0.
        exponent = (exponent - exponent.detach().amax(-1, keepdim=True)).clamp_min(LEAST_EXPONENT)
        features = exponent.exp()
        return features / features.sum(-1, keepdim=True)
