"""Softmax attention to the keys of a pattern: local, local-global (Longformer), strided and bigbird. O(L) time."""

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from protein_lm.attention.kinds.interface import LARGEST, AttentionOptions, CachedOperation, LayerShape
from protein_lm.attention.operations.exact import KeyValueCache
from protein_lm.attention.operations.sparse import (
    extend_sparse_attention,
    sparse_attention,
    sparse_attention_matrix,
    sparse_matrix_rows,
)
from protein_lm.attention.operations.sparse_patterns import Pattern
from protein_lm.attention.rows import WHOLE, Rows


class SparseOperation(CachedOperation):
    """Softmax attention to the keys of a pattern."""

    def __init__(self, pattern: Pattern, *, causal: bool, own_global_projections: bool = False) -> None:
        super().__init__(causal=causal)
        self.pattern = pattern
        # Only in the bidirectional form do global tokens see more than others do.
        self.heads_per_output = 2 if own_global_projections and not causal else 1
        self.heads_are_alike = self.heads_per_output == 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        (query, key, value), of_globals = self._halves(query, key, value)
        return sparse_attention(
            query,
            key,
            value,
            self.pattern,
            causal=self.causal,
            **rows.of_one_process(),
            global_inputs=of_globals,
        )

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        (query, key), of_globals = self._halves(query, key)
        return sparse_attention_matrix(
            query,
            key,
            self.pattern,
            causal=self.causal,
            **rows.of_one_process(),
            global_inputs=of_globals,
        )

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        (query, key), of_globals = self._halves(query, key)
        return sparse_matrix_rows(query, key, self.pattern, causal=self.causal, global_inputs=of_globals)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: KeyValueCache) -> Tensor:
        return extend_sparse_attention(query, key, value, self.pattern, state)

    def _halves(self, *tensors: Tensor) -> tuple[Any, Any]:
        """Heads of ordinary tokens, and those of global tokens if they have heads of their own."""
        if self.heads_per_output == 1:
            return tensors, None
        first, second = zip(*(tensor.chunk(2, dim=1) for tensor in tensors), strict=True)
        return first, second


class LocalOptions(AttentionOptions):
    """Options of local attention: each token sees a window around it."""

    own_global_projections: ClassVar[bool] = False

    window: int = Field(default=256, ge=1, le=LARGEST)
    """Tokens in sight: on both sides together, or in causal models the last ones, the token itself included."""

    def pattern(self, layer: LayerShape) -> Pattern:
        """Return which keys each query sees."""
        return Pattern(window=self.window)

    def build(self, layer: LayerShape) -> SparseOperation:
        pattern = self.pattern(layer)
        return SparseOperation(pattern, causal=layer.causal, own_global_projections=self.own_global_projections)


class LocalGlobalOptions(LocalOptions):
    """Options of local-global attention: a window, and global tokens with projections of their own."""

    own_global_projections = True

    num_global_tokens: int = Field(default=1, ge=1, le=LARGEST)
    """First tokens of a sequence that all others see; in masked models they also see all others."""

    def pattern(self, layer: LayerShape) -> Pattern:
        return Pattern(window=self.window, num_global_tokens=self.num_global_tokens)


class StridedOptions(LocalOptions):
    """Options of strided attention: a window, and blocks of 64 tokens at a stride."""

    stride: int = Field(default=4, ge=1, le=LARGEST)
    """Distance of these blocks, in blocks."""
    num_strides: int = Field(default=2, ge=1, le=LARGEST)
    """Number of these blocks on each side."""

    def pattern(self, layer: LayerShape) -> Pattern:
        return Pattern(window=self.window, stride=self.stride, num_strides=self.num_strides)


class BigBirdOptions(LocalOptions):
    """Options of bigbird attention: a window, global tokens, and blocks of 64 tokens drawn at random in each layer."""

    num_global_tokens: int = Field(default=1, ge=1, le=LARGEST)
    """First tokens of a sequence that all others see; in masked models they also see all others."""
    num_random_blocks: int = Field(default=3, ge=1, le=LARGEST)
    """Number of blocks drawn for each block of queries."""

    def pattern(self, layer: LayerShape) -> Pattern:
        return Pattern(
            window=self.window,
            num_global_tokens=self.num_global_tokens,
            num_random_blocks=self.num_random_blocks,
            seed=layer.seed,
        )
