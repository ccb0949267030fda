"""Positive feature maps φ: the kernel of a linear attention is φ(q)·φ(k).

A map takes queries or keys (B, H, L, E). It returns non-negative features (B, H, L, M), formed in float32 or better.
Random maps hold their projection in a saved buffer, which only `redraw` changes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.feature_maps.projections import PROJECTIONS


class FeatureMap(nn.Module):
    """Turns queries and keys (B, H, L, E) into non-negative features (B, H, L, M)."""

    num_features: int
    is_positive = True
    """Whether no feature is ever negative, so that attention is a weighted mean."""
    has_gradients = False
    """Whether `query_gradient` and `key_gradient` exist, a shorter way than autograd; for maps without parameters."""
    takes_bfloat16 = False
    """Whether bfloat16 rows give, in bfloat16, what they would give in float32, rounded once. Others get float32 rows."""
    heads_are_uniform = True
    """Whether all heads have the same map."""
    is_random = False
    """Whether `redraw` changes the features."""

    def check(self, head_width: int) -> None:
        """Refuse queries and keys of a width that the map is not made for.

        Raises:
            ValueError: naming both widths.
        """

    def query_features(self, query: Tensor) -> Tensor:
        """Features (B, H, L, M) of queries (B, H, L, E), each up to a positive factor of its own: it cancels."""
        raise NotImplementedError

    def key_features(self, key: Tensor) -> Tensor:
        """Features (B, H, L, M) of keys (B, H, L, E); the same map as for queries unless a subclass has another one."""
        return self.query_features(key)

    def query_gradient(self, query: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        """Gradient (B, H, L, E) of queries from their features (B, H, L, M) and the features' gradient, maybe in bfloat16."""
        raise NotImplementedError

    def key_gradient(self, key: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        """As `query_gradient`, for keys; the same function unless a subclass has another one."""
        return self.query_gradient(key, features, gradient)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the trained weights, if there are any."""

    def redraw(self, generator: torch.Generator) -> None:
        """Draw the random projection anew, if there is one."""

    def orthogonal_weights(self) -> list[Tensor]:
        """Weights (H, E, E) that the penalty λ ‖WWᵀ - I‖² keeps orthogonal."""
        return []


class RandomFeatureMap(FeatureMap):
    """A map with a random projection (M, E), shared by the heads of a layer; `projection` names one of `PROJECTIONS`.

    With the projection "none", M is E and `num_features` has no meaning.
    """

    projection: Tensor
    is_unprojected: bool
    """Whether features are a function of each channel."""

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        super().__init__()
        if head_width < 1 or num_features < 1:
            raise ValueError(f"head width {head_width} and number of features {num_features} must both be at least 1")
        self.is_unprojected = projection == "none"
        self.is_random = not self.is_unprojected
        if self.is_unprojected:
            num_features = head_width
        self.num_features = num_features
        self._draw = PROJECTIONS[projection]
        self.register_buffer("projection", torch.empty(num_features, head_width))
        self.redraw(torch.Generator().manual_seed(0))

    def check(self, head_width: int) -> None:
        if head_width != self.projection.shape[1]:
            raise ValueError(
                f"queries and keys are {head_width} wide; this projection is for {self.projection.shape[1]}"
            )

    def redraw(self, generator: torch.Generator) -> None:
        """Overwrite the projection with a new draw from `generator` (on the CPU, so that every device gets the same draw)."""
        num_features, head_width = self.projection.shape
        self.projection.copy_(self._draw(num_features, head_width, generator))


class ReLUFeatures(RandomFeatureMap):
    """Performer-ReLU, the generalized kernel of Performers: m^(-1/2) relu(w·x) + epsilon with x = q or k times E^(-1/4).

    The scaled projection is drawn among the numbers that bfloat16 has. A product of bfloat16 rows with it is then exact but
    for its float32 sums and one rounding at the end. As operands of bfloat16 products, features are rounded so anyway.

    Source: Choromanski et al. 2021 (arXiv 2009.14794), section 2.2 and appendix. Its experiments have epsilon 1e-3; ours is
    the number of bfloat16 near it.
    """

    epsilon = 2**-10
    has_gradients = True
    takes_bfloat16 = True

    def redraw(self, generator: torch.Generator) -> None:
        super().redraw(generator)
        self.projection.copy_((self.projection * self.scale).to(torch.bfloat16)).div_(self.scale)

    def query_features(self, query: Tensor) -> Tensor:
        if query.numel() < self.projection.numel() and query.dtype == self.projection.dtype:  # a token of decoding
            query, projection = query * self.scale, self.projection
        else:
            projection = self.scaled_projection(query.dtype)
        # relu(x) + epsilon = max(x + epsilon, epsilon): the sum comes out of the product, the maximum overwrites it.
        shifted = functional.linear(query, projection, query.new_full((self.num_features,), self.epsilon))
        return functional.threshold(shifted, self.epsilon, self.epsilon, inplace=True)

    def query_gradient(self, query: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        rectified = torch.ops.aten.threshold_backward(gradient, features.to(gradient.dtype), self.epsilon)
        return rectified @ self.scaled_projection(gradient.dtype)

    @property
    def scale(self) -> float:
        """Factor of the projection, which replaces a factor of the rows."""
        num_features, head_width = self.projection.shape
        return num_features**-0.5 * head_width**-0.25

    def scaled_projection(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The projection (M, E) of unscaled rows; bfloat16 has all of its numbers."""
        return (self.projection * self.scale).to(dtype)


class SoftmaxFeatures(RandomFeatureMap):
    """Performer-softmax (FAVOR+): φ(q)·φ(k) is an unbiased estimate of exp(q·k / √E), up to a factor per query.

    With x = q E^(-1/4), y = k E^(-1/4), the textbook features are exp(w·x - |x|²/2) and exp(w·y - |y|²/2). Here the key's
    exponent is -|w - y|²/2 + `headroom`, which is bounded for any key. The term |w|²/2 has moved to the query, whose maximum
    over the features is then subtracted. All that was added is constant or belongs to one query, so it cancels in the
    normalized output. No maximum over keys is needed, through which the future or the padding could act, and no epsilon.

    Source: Choromanski et al. 2021 (arXiv 2009.14794), lemma 1; the stabilizer is ours.
    """

    has_gradients = True

    def __init__(self, head_width: int, num_features: int, projection: str = "orthogonal") -> None:
        super().__init__(head_width, num_features, projection)
        if self.is_unprojected:
            raise ValueError("softmax features need a random projection; choose any but none")

    headroom = 60.0
    """Bound of a key's exponent. e^60 leaves room in float32 both for sums over long sequences and for small features."""
    floor = -69.0
    """Least exponent of a key, about 1e-30: far outside the useful norms the kernel goes uniform instead of 0/0."""

    def query_features(self, query: Tensor) -> Tensor:
        projection, half_norms = self._projection(query)
        exponent = functional.linear(query, projection, half_norms)
        return exponent.sub_(exponent.detach().amax(-1, keepdim=True)).exp_()

    def key_features(self, key: Tensor) -> Tensor:
        projection, half_norms = self._projection(key)
        exponent = functional.linear(key, projection, self.headroom - half_norms)
        return exponent.sub_(key.square().sum(-1, keepdim=True) * (self.scale**2 / 2)).clamp_min_(self.floor).exp_()

    def query_gradient(self, query: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        # The maximum counts as a constant, since it cancels.
        return (gradient * features.to(gradient.dtype)) @ self._projection(gradient)[0]

    def key_gradient(self, key: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        # Σ weighted (w - y) cancels in part: its two sums are exact even if gradients are not.
        weighted = (gradient * features.to(gradient.dtype)).to(key.dtype)
        at_floor = math.exp(self.floor) * (1 + 1e-5)
        weighted = torch.ops.aten.threshold_backward.grad_input(weighted, features, at_floor, grad_input=weighted)
        return weighted @ self._projection(key)[0] - key * (weighted.sum(-1, keepdim=True) * self.scale**2)

    @property
    def scale(self) -> float:
        """Factor of the projection, which replaces a factor of the rows."""
        return self.projection.shape[1] ** -0.25

    def _projection(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The projection of unscaled rows (M, E), and |w|²/2 (M,), in the type of `like`."""
        half_norms = self.projection.square().sum(-1) / 2
        return (self.projection * self.scale).to(like.dtype), half_norms.to(like.dtype)
