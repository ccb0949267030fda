"""Attention matrices out of any kind of attention, linear ones included, for one protein."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.operations import AttentionOperation
from protein_lm.attention.rows import Rows
from protein_lm.data.batches import pack
from protein_lm.data.records import SequenceRecord
from protein_lm.errors import ConfigError
from protein_lm.inference.score import check_length
from protein_lm.model.language_model import ProteinLM


class LayerCall(NamedTuple):
    """What one attention operation received and gave, in one pass."""

    operation: AttentionOperation
    query: Tensor
    """(B, H, L, E), positions applied."""
    key: Tensor
    """(B, H, L, E), positions applied."""
    value: Tensor
    """(B, H, L, E)."""
    rows: Rows
    output: Tensor
    """(B, H, L, E)."""


@contextmanager
def recorded_calls(model: ProteinLM) -> Iterator[list[LayerCall]]:
    """Record every attention operation that runs inside, in the order of the layers."""
    calls: list[LayerCall] = []

    def record(operation: Any, inputs: Any, output: Tensor) -> None:
        query, key, value, rows = inputs
        calls.append(LayerCall(operation, query, key, value, rows, output))

    handles = [operation.register_forward_hook(record) for operation in model.operations()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def attention_matrices(
    model: ProteinLM,
    record: SequenceRecord,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Attention of one protein, (layers, heads, L + 2, L + 2); <cls> is the first token, <eos> the last.

    Rows sum to 1, except with the kinds whose weights may be negative (see the table of kinds in the README).

    For a linear kind this is the matrix φ(q)·φ(k) / normalizer that the layer applies without ever forming it.
    Memory grows with the square of the length.

    Args:
        model: any model.
        record: the protein.
        layers: 0-based layers to keep, in that order; None for all.
        heads: 0-based heads to keep, in that order; None for all.

    Raises:
        InputError: the protein is longer than the model's window.
        ConfigError: a layer or head that the model does not have.
    """
    check_length(record, model)
    chosen_layers = _choose(layers, model.config.num_layers, "layer")
    chosen_heads = _choose(heads, model.config.num_heads, "head")
    tokens, _ = pack([record.tokens])
    with recorded_calls(model) as calls:
        model.hidden_states(tokens.to(model.device))
    matrices = []
    for layer in chosen_layers:
        call = calls[layer]
        if call.operation.heads_are_alike:
            matrix = call.operation.matrix(call.query[:, chosen_heads], call.key[:, chosen_heads])[0]
        else:
            matrix = call.operation.matrix(call.query, call.key)[0, chosen_heads]
        matrices.append(matrix.float().cpu().numpy())
    return np.stack(matrices)


def head_statistics(matrices: NDArray[np.float32], *, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
    """One row per head: what it looks at.

    Columns: layer, head (1-based), mean_entropy_nats (of the rows), mean_distance (tokens between query and key,
    weighted by attention), max_column_share (largest share of all attention that one token receives), local_share
    (attention within 3 tokens on either side).
    """
    length = matrices.shape[-1]
    distance = np.abs(np.arange(length)[:, None] - np.arange(length)[None, :])
    rows = []
    for i, layer in enumerate(layers):
        for j, head in enumerate(heads):
            matrix = matrices[i, j].astype(np.float64)
            entropy = -(matrix * np.log(np.maximum(matrix, 1e-30))).sum(-1).mean()
            rows.append(
                {
                    "layer": layer + 1,
                    "head": head + 1,
                    "mean_entropy_nats": entropy,
                    "mean_distance": (matrix * distance).sum() / length,
                    "max_column_share": matrix.sum(0).max() / length,
                    "local_share": (matrix * (distance <= 3)).sum() / length,
                }
            )
    return pd.DataFrame(rows)


def _choose(chosen: Sequence[int] | None, count: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    for index in chosen:
        if not 0 <= index < count:
            raise ConfigError(f"{what} {index + 1} does not exist; this model has {what}s 1 to {count}")
    return list(chosen)
