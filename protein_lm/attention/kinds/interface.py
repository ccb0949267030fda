"""The two parts of a kind of attention: options that a recipe may set, and the operation that a layer calls.

A kind is a subclass of `AttentionOptions`, which builds an `AttentionOperation` for a layer. `table.py` gives it a name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from protein_lm.attention.operations.exact import KeyValueCache
from protein_lm.attention.rows import WHOLE, Rows

LARGEST = 2**31 - 1
"""Bound of options that only cost time or memory."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The layer that an operation is built for."""

    num_heads: int
    head_width: int
    causal: bool
    max_length: int = 8192
    """Tokens of the longest sequence."""
    seed: int = 0
    """Seed of what a pattern draws; another one for each layer."""


class AttentionOptions(BaseModel):
    """The options of a kind of attention. Subclasses add their own, with defaults and bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    has_causal_form: ClassVar[bool] = True
    """Whether a causal model can use the kind."""

    kind: str
    """Name of the kind."""

    @property
    def has_orthogonal_weights(self) -> bool:
        """Whether the kind has weights that `training.orthogonality` acts on."""
        return False

    def build(self, layer: LayerShape) -> "AttentionOperation":
        """Return the operation of a layer."""
        raise NotImplementedError


class AttentionOperation(nn.Module):
    """The operation of an attention layer between its projections. It owns the weights that belong to the kind alone."""

    shares_query_and_key = False
    """Whether the query serves as key, and the key is not looked at."""
    heads_per_output = 1
    """Heads of query, key and value per head of the output. With 2, global tokens use the second half."""
    heads_are_alike = True
    """Whether all heads compute the same function, so that some of them can be computed without the others."""
    rows_can_be_replaced = False
    """Whether the rows of a state may have read different numbers of tokens, so that one of them can start anew."""
    can_be_split = False
    """Whether processes that each hold a stretch of a row can compute it together (see `sequence_parallel`)."""
    reads_any_length = False
    """Whether a causal model can read on without end: neither state nor weights depend on a longest sequence."""
    weights_are_positive = True
    """Whether rows of the matrix are non-negative weights that sum to 1."""
    is_random = False
    """Whether `redraw` changes anything."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """Output (B, H, L, width of value) of queries and keys (B, H, L, E)."""
        raise NotImplementedError

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """The attention matrix (B, H, L, L): `matrix(q, k) @ v` equals the output. O(L²) memory.

        With two heads per output, rows of global tokens weigh the second half of the values.
        """
        raise NotImplementedError

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """The matrix of rows that are whole sequences, a few of its rows at a time.

        Returns:
            A function: span of S queries -> (B, H, S, T). T is L, or the end of the span if causal: later keys have no
            weight. Only these rows are formed. The caller may change the tensor.
        """
        raise NotImplementedError

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> Any:
        """The state of `extend` before the first token; for causal operations.

        Its `keep(rows)` keeps the rows of these numbers (K,). Its `put(row, other)` makes a row resume from `other`, a state
        of one row, where `rows_can_be_replaced`.
        """
        raise NotImplementedError

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: Any) -> Tensor:
        """Output (B, H, S, E) of S tokens that follow those in `state`, which is updated in place."""
        raise NotImplementedError

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the trained weights, if there are any."""

    def redraw(self, generator: torch.Generator) -> None:
        """Draw random features or hashes anew, if there are any."""

    def orthogonal_weights(self) -> list[Tensor]:
        """Weights (H, E, E) that training may keep orthogonal."""
        return []


class CachedOperation(AttentionOperation):
    """An operation that decodes from a cache of keys and values, which grows with the length."""

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> KeyValueCache:
        return KeyValueCache(batch_size, num_heads, head_width, device)
