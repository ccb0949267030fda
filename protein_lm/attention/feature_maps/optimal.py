"""Softmax features of least variance: optimal positive features (FAVOR++) and SADERF, which adapts to unequal scales.

Both estimate exp(q·k / √E) without bias, up to a factor per query. Both are softmax features with a stretched projection.
Let x = q E^(-1/4) and y = k E^(-1/4). FAVOR++ has the features D exp(A|w|² + b w·x - |x|²/2), where A ≤ 0 and b = √(1 - 4A).
We complete the square as in `SoftmaxFeatures`: a key's exponent is -|b w - y|²/2, and a query's b w·x + |w|²/2. D and the
other terms are constant or belong to one query, and cancel.

The best A follows from r = mean|x + y|² / E. If r came from the sequence itself, the future and the padding would act. It is
therefore a trained number of the layer, which `calibrate` sets from a sample.

Sources: Likhosherstov et al. 2022 (arXiv 2205.15317), section 3; Likhosherstov et al. 2023 (FAVOR#, arXiv 2302.00787) for
SADERF.
"""

import torch
from torch import Tensor, nn

from protein_lm.attention.feature_maps.performer import SoftmaxFeatures


class OptimalFeatures(SoftmaxFeatures):
    """Optimal positive features (OPRF)."""

    has_gradients = False

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        super().__init__(head_width, num_features, projection)
        self.log_spread = nn.Parameter(torch.tensor(2 * head_width**-0.5).log())
        """log r; it begins at the value for queries and keys with independent standard normal channels."""

    @torch.no_grad()
    def calibrate(self, query: Tensor, key: Tensor) -> None:
        """Set r from queries and keys (..., L, E): the mean of |x + y|² / E over all their pairs."""
        x, y = (rows.double().flatten(0, -2) * self.scale for rows in self._rescaled(query, key))
        # mean |x + y|² = mean |x|² + mean |y|² + 2 mean(x)·mean(y)
        mean = x.square().sum(-1).mean() + y.square().sum(-1).mean() + 2 * x.mean(0) @ y.mean(0)
        self.log_spread.copy_((mean / x.shape[-1]).clamp_min(1e-12).log())

    @property
    def stretch(self) -> Tensor:
        """The factor b = √(1 - 4A); 1 for plain softmax features, larger with larger queries and keys."""
        spread = self.log_spread.exp()
        return (1 - (1 - 2 * spread - ((2 * spread + 1).square() + 8 * spread).sqrt()) / 4).sqrt()

    def query_features(self, query: Tensor) -> Tensor:
        projection, half_norms = self._projection(query)
        exponent = (query * self.stretch.to(query.dtype)) @ projection.mT + half_norms
        return (exponent - exponent.detach().amax(-1, keepdim=True)).exp()

    def key_features(self, key: Tensor) -> Tensor:
        projection, half_norms = self._projection(key)
        stretch = self.stretch.to(key.dtype)
        # Far stretched features have their exponents raised, so that those of usual keys are not lost.
        constant = (stretch.square() * key.shape[-1] / 2).clamp_min(self.headroom)
        exponent = (key * stretch) @ projection.mT - stretch.square() * half_norms + constant
        exponent = exponent - key.square().sum(-1, keepdim=True) * (self.scale**2 / 2)
        return exponent.clamp(self.floor, self.headroom).exp()

    def _rescaled(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key


class SaderfFeatures(OptimalFeatures):
    """Optimal positive features of Ψq and Ψ⁻¹k, with Ψ diagonal: q·k does not change, and |q + k| becomes minimal.

    The best Ψ has Ψ_l = (Σ k_l² / Σ q_l²)^(1/4). It is trained, with one number per channel, and set by `calibrate`.
    """

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        super().__init__(head_width, num_features, projection)
        self.log_balance = nn.Parameter(torch.zeros(head_width))
        """log Ψ (E,)."""

    @torch.no_grad()
    def calibrate(self, query: Tensor, key: Tensor) -> None:
        """Set Ψ, then r, from queries and keys (..., L, E)."""
        of_query, of_key = (rows.double().flatten(0, -2).square().mean(0).clamp_min(1e-12) for rows in (query, key))
        self.log_balance.copy_((of_key / of_query).log() / 4)
        super().calibrate(query, key)

    def query_features(self, query: Tensor) -> Tensor:
        return super().query_features(query * self.log_balance.exp().to(query.dtype))

    def key_features(self, key: Tensor) -> Tensor:
        return super().key_features(key * (-self.log_balance).exp().to(key.dtype))

    def _rescaled(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        balance = self.log_balance.exp().to(query.dtype)
        return query * balance, key / balance
