"""Generalized kernels of Performers: φ(x) = m^(-1/2) f(w·x) + epsilon for an elementwise function f; and ELU + 1.

Source: Choromanski et al. 2021 (arXiv 2009.14794), section 2.2 and its ablation of f; Katharopoulos et al. 2020 (arXiv
2006.16236) for ELU + 1.

With cos, tanh, gelu and the identity, features change sign. The kernel may then be negative, and a normalizer may come near
zero: the paper saw NaN with some. They serve for comparison; ReLU is the one to use.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from protein_lm.attention.feature_maps.performer import FeatureMap, RandomFeatureMap

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "abs": torch.abs,
    "gelu": functional.gelu,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "identity": lambda projected: projected,
}
"""Name -> f. ReLU and exp have classes of their own: for speed, and against overflow."""

SIGNED_FUNCTIONS = frozenset({"gelu", "cos", "tanh", "identity"})
"""Functions whose features may be negative."""

LEAST_EXPONENT = -40.0
"""Bound of exponents from below: products of two features stay above 0 in float32, and so do normalizers."""


class GeneralizedFeatures(RandomFeatureMap):
    """m^(-1/2) f(w·x) + epsilon with x = q or k times E^(-1/4)."""

    epsilon = 1e-3

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal", *, function: str) -> None:
        super().__init__(head_width, num_features, projection)
        self._function = FUNCTIONS[function]
        self.is_positive = function not in SIGNED_FUNCTIONS

    def query_features(self, query: Tensor) -> Tensor:
        return self._function(self._projected(query)) * self.num_features**-0.5 + self.epsilon

    def _projected(self, rows: Tensor) -> Tensor:
        num_features, head_width = self.projection.shape
        scale = head_width**-0.25
        if self.is_unprojected:
            scale *= num_features**-0.5  # the identity is scaled to undo m^(-1/2), which is outside f here
        return functional.linear(rows, self.projection.to(rows.dtype) * scale)


class ExponentialFeatures(GeneralizedFeatures):
    """f = exp. A query's features are divided by their largest exponential, which cancels; a key's exponents are bounded."""

    greatest_exponent = 60.0
    """Bound of a key's exponents. Above it, sums over long sequences would overflow float32."""

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        super().__init__(head_width, num_features, projection, function="identity")
        self.is_positive = True

    def query_features(self, query: Tensor) -> Tensor:
        exponent = self._projected(query)
        largest = exponent.detach().amax(-1, keepdim=True).clamp_min(0)
        scaled_epsilon = self.epsilon * (-largest).exp()
        return (exponent - largest).exp() * self.num_features**-0.5 + scaled_epsilon

    def key_features(self, key: Tensor) -> Tensor:
        exponent = self._projected(key).clamp_max(self.greatest_exponent)
        return exponent.exp() * self.num_features**-0.5 + self.epsilon


class EluFeatures(FeatureMap):
    """elu(x) + 1 of each channel, with x = q or k itself."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.num_features = head_width

    def query_features(self, query: Tensor) -> Tensor:
        # elu(x) + 1 loses the small exponentials to rounding; this is the same function without the sum.
        return torch.where(query > 0, query + 1, query.clamp(LEAST_EXPONENT, 0).exp())
