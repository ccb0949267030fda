"""Softmax attention, O(L²)."""

from collections.abc import Callable

from torch import Tensor

from protein_lm.attention.dispatch import exact_attention
from protein_lm.attention.kinds.interface import AttentionOptions, CachedOperation, LayerShape
from protein_lm.attention.matrix_rows import exact_matrix_rows
from protein_lm.attention.operations.exact import KeyValueCache, extend_exact_attention
from protein_lm.attention.reference import exact_attention_matrix
from protein_lm.attention.rows import WHOLE, Rows


class ExactOperation(CachedOperation):
    """Softmax attention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        return exact_attention(query, key, value, causal=self.causal, **rows.of_one_process())

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        return exact_attention_matrix(query, key, causal=self.causal, **rows.of_one_process())

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        return exact_matrix_rows(query, key, causal=self.causal)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: KeyValueCache) -> Tensor:
        return extend_exact_attention(query, key, value, state)


class ExactOptions(AttentionOptions):
    """Exact attention has no options."""

    def build(self, layer: LayerShape) -> ExactOperation:
        return ExactOperation(causal=layer.causal)
