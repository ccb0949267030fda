"""Linear attention: the kinds whose kernel is a product of features, φ(q)·φ(k). O(L) time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from protein_lm.attention.dispatch import linear_attention
from protein_lm.attention.feature_maps.generalized import (
    FUNCTIONS,
    EluFeatures,
    ExponentialFeatures,
    GeneralizedFeatures,
)
from protein_lm.attention.feature_maps.optimal import OptimalFeatures, SaderfFeatures
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.feature_maps.projections import PROJECTIONS
from protein_lm.attention.feature_maps.trainable import FeedForwardFeatures, HedgehogFeatures
from protein_lm.attention.kinds.interface import AttentionOperation, AttentionOptions, LayerShape
from protein_lm.attention.matrix_rows import linear_matrix_rows
from protein_lm.attention.operations.linear_recurrence import LinearState, extend_linear_attention
from protein_lm.attention.reference import linear_attention_matrix
from protein_lm.attention.rows import WHOLE, Rows
from protein_lm.errors import quoted


class LinearOperation(AttentionOperation):
    """Linear attention with a feature map."""

    can_be_split = True
    reads_any_length = True
    rows_can_be_replaced = True

    def __init__(self, feature_map: FeatureMap, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self.feature_map = feature_map
        self.weights_are_positive = feature_map.is_positive
        self.heads_are_alike = feature_map.heads_are_alike
        self.is_random = feature_map.is_random

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        return linear_attention(query, key, value, self.feature_map, causal=self.causal, **rows._asdict())

    def key_features(self, key: Tensor) -> Tensor:
        """Features (B, H, L, M) of the keys (B, H, L, E) of rows that are whole sequences."""
        return self.feature_map.key_features(key)

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        return linear_attention_matrix(query, key, self.feature_map, causal=self.causal, **rows.of_one_process())

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        return linear_matrix_rows(query, key, self.feature_map, causal=self.causal)

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> Any:
        return LinearState(batch_size, num_heads, self.feature_map, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: Any) -> Tensor:
        return extend_linear_attention(query, key, value, self.feature_map, state)

    def initialize(self, generator: torch.Generator) -> None:
        self.feature_map.initialize(generator)

    def redraw(self, generator: torch.Generator) -> None:
        self.feature_map.redraw(generator)

    def orthogonal_weights(self) -> list[Tensor]:
        return self.feature_map.orthogonal_weights()


SOFTMAX_FEATURES: dict[str, Callable[..., FeatureMap]] = {
    "performer-softmax": SoftmaxFeatures,
    "performer-optimal": OptimalFeatures,
    "performer-saderf": SaderfFeatures,
}
"""Kinds that estimate the softmax kernel -> feature map."""
RANDOM_FEATURES: dict[str, Callable[..., FeatureMap]] = {
    "performer-relu": ReLUFeatures,
    **SOFTMAX_FEATURES,
    "performer-exp": ExponentialFeatures,
    **{f"performer-{name}": partial(GeneralizedFeatures, function=name) for name in FUNCTIONS},
}
"""Kinds with random features -> feature map, built from `(head_width, num_features, projection)`."""


class RandomFeatureOptions(AttentionOptions):
    """Options of the Performer kinds."""

    num_features: int = Field(default=256, ge=1, le=2**20)
    """M, random features per head."""
    projection: str = "orthogonal"
    """Draw of the random features; a name in `PROJECTIONS`. With none, features are a function of each channel."""

    @field_validator("projection")
    @classmethod
    def _is_known(cls, projection: str) -> str:
        if projection not in PROJECTIONS:
            raise ValueError(f"{quoted(projection)} is no projection; known ones: {', '.join(PROJECTIONS)}")
        return projection

    @model_validator(mode="after")
    def _projection_fits(self) -> "RandomFeatureOptions":
        if self.projection == "none" and self.kind in SOFTMAX_FEATURES:
            raise ValueError(f"{self.kind} estimates with random features; projection cannot be none")
        if self.projection == "hyperbolic" and self.num_features % 2:
            raise ValueError(
                f"num_features {self.num_features} must be even for the hyperbolic projection, whose rows come in pairs"
            )
        return self

    def build(self, layer: LayerShape) -> LinearOperation:
        feature_map = RANDOM_FEATURES[self.kind](layer.head_width, self.num_features, self.projection)
        return LinearOperation(feature_map, causal=layer.causal)


class EluOptions(AttentionOptions):
    """The kind elu has no options."""

    def build(self, layer: LayerShape) -> LinearOperation:
        return LinearOperation(EluFeatures(layer.head_width), causal=layer.causal)


class HedgehogOptions(AttentionOptions):
    """The kind hedgehog has no options."""

    def build(self, layer: LayerShape) -> LinearOperation:
        return LinearOperation(HedgehogFeatures(layer.num_heads, layer.head_width), causal=layer.causal)


FEED_FORWARD_FEATURES: dict[str, dict[str, Any]] = {
    "softplus": {},
    "orthogonal-softplus": {"orthogonal": True},
    "glu": {"gated": True},
    "glu-2": {"gated": True, "num_layers": 2},
    "glu-3": {"gated": True, "num_layers": 3},
    "oglu": {"gated": True, "orthogonal": True},
    "oglu-2": {"gated": True, "orthogonal": True, "num_layers": 2},
    "aoglu-3": {"gated": True, "orthogonal": True, "num_layers": 3, "low_rank_gates": True},
}
"""Kinds with a small trained network as feature map -> arguments of `FeedForwardFeatures`."""


class FeedForwardOptions(AttentionOptions):
    """The kinds with a trained network have no options: their names say the network."""

    @property
    def has_orthogonal_weights(self) -> bool:
        return FEED_FORWARD_FEATURES[self.kind].get("orthogonal", False)

    def build(self, layer: LayerShape) -> LinearOperation:
        feature_map = FeedForwardFeatures(layer.num_heads, layer.head_width, **FEED_FORWARD_FEATURES[self.kind])
        return LinearOperation(feature_map, causal=layer.causal)
