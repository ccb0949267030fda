"""Softmax attention among the tokens of a bucket of a hash (Reformer). O(L log L) time."""

from collections.abc import Callable

import torch
from pydantic import Field, field_validator
from torch import Tensor

from protein_lm.attention.kinds.interface import LARGEST, AttentionOperation, AttentionOptions, LayerShape
from protein_lm.attention.operations.lsh import (
    Hash,
    LshCache,
    extend_lsh_attention,
    lsh_attention,
    lsh_attention_matrix,
    lsh_matrix_rows,
)
from protein_lm.attention.operations.sparse_patterns import Pattern
from protein_lm.attention.rows import WHOLE, Rows


class LshOperation(AttentionOperation):
    """Softmax attention within buckets of a hash."""

    shares_query_and_key = True
    heads_are_alike = False
    is_random = True

    def __init__(self, hashing: Hash, window: int, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self.hashing = hashing
        self.window = window

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        return lsh_attention(
            query,
            value,
            self.hashing(query),
            window=self.window,
            block=Pattern.block,
            causal=self.causal,
            **rows.of_one_process(),
        )

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        return lsh_attention_matrix(
            query,
            self.hashing(query),
            window=self.window,
            causal=self.causal,
            **rows.of_one_process(),
        )

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        return lsh_matrix_rows(query, self.hashing(query), window=self.window, causal=self.causal)

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> LshCache:
        return LshCache(batch_size, num_heads, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: LshCache) -> Tensor:
        return extend_lsh_attention(query, value, self.hashing, self.window, state)

    def redraw(self, generator: torch.Generator) -> None:
        self.hashing.redraw(generator)


class LshOptions(AttentionOptions):
    """Options of lsh attention."""

    window: int = Field(default=256, ge=1, le=LARGEST)
    """Tokens in sight within a bucket: on both sides together, or before a token in causal models."""
    num_buckets: int = Field(default=32, ge=2, le=LARGEST)
    """Number of buckets, even."""
    num_hash_rounds: int = Field(default=2, ge=1, le=LARGEST)
    """Rounds of hashing."""

    @field_validator("num_buckets")
    @classmethod
    def _come_in_pairs(cls, num_buckets: int) -> int:
        if num_buckets % 2:
            raise ValueError(f"num_buckets {num_buckets} must be even: a rotation makes two buckets of each axis")
        return num_buckets

    def build(self, layer: LayerShape) -> LshOperation:
        hashing = Hash(layer.num_heads, layer.head_width, num_buckets=self.num_buckets, num_rounds=self.num_hash_rounds)
        return LshOperation(hashing, self.window, causal=layer.causal)
