"""Attention matrices out of any kind of attention, linear ones included, for one protein: whole, or some rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.kinds.interface import AttentionOperation
from protein_lm.attention.rows import Rows
from protein_lm.batches.batches import pack
from protein_lm.errors import ConfigError
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

BLOCK_BYTES = 2**24
"""Rows of a matrix that are formed at a time, all heads together."""


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

    def blocks(self, heads: Sequence[int], span: slice) -> Iterator[tuple[int, Tensor]]:
        """The matrix of the only sequence, from top to bottom of a span of queries.

        Yields:
            Number of the first of S queries, and the weights (heads, S, T) in float32, see `AttentionOperation.matrix_rows`.
        """
        chosen = list(heads) if self.operation.heads_are_alike else list(range(self.query.shape[1]))
        rows = self.operation.matrix_rows(self.query[:, chosen], self.key[:, chosen])
        size = max(1, BLOCK_BYTES // (4 * len(chosen) * self.query.shape[2]))
        for start in range(span.start, span.stop, size):
            block = rows(slice(start, min(start + size, span.stop)))[0].float()
            yield start, block if self.operation.heads_are_alike else block[list(heads)]


class Form(Protocol):
    """What becomes of the rows of matrices as they pass by."""

    def add(self, place: int, start: int, weights: Tensor) -> None:
        """Take rows `start` and following, (heads, S, T) as `LayerCall.blocks` gives them, of the chosen layer `place`."""
        ...


@contextmanager
def visited_calls(model: ProteinLM, visit: Callable[[int, LayerCall], None]) -> Iterator[None]:
    """Show every attention operation that runs inside to `visit`, with its 0-based layer, as soon as it has run."""

    def hook(layer: int) -> Callable[..., None]:
        def show(operation: Any, inputs: Any, output: Tensor) -> None:
            query, key, value, rows = inputs
            visit(layer, LayerCall(operation, query, key, value, rows, output))

        return show

    handles = [operation.register_forward_hook(hook(layer)) for layer, operation in enumerate(model.operations())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded_calls(model: ProteinLM) -> Iterator[list[LayerCall]]:
    """Record every attention operation that runs inside, in the order of the layers."""
    calls: list[LayerCall] = []
    with visited_calls(model, lambda _, call: calls.append(call)):
        yield calls


@torch.inference_mode()
def visit_layers(
    model: ProteinLM, record: SequenceRecord, visit: Callable[[int, LayerCall], None], *, layers: Sequence[int]
) -> None:
    """Read a protein and show the calls of some layers to `visit`, with their places in `layers`; one is in memory at a time.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    check_length(record, model)
    tokens, _ = pack([record.tokens])

    def show(layer: int, call: LayerCall) -> None:
        for place in (place for place, chosen in enumerate(layers) if chosen == layer):
            visit(place, call)

    with visited_calls(model, show):
        model.hidden_states(tokens.to(model.device))


def read_attention(
    model: ProteinLM,
    record: SequenceRecord,
    forms: Sequence[Form],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
) -> None:
    """Walk over the attention of one protein, which no form needs to hold whole.

    <cls> is the first token, <eos> the last.

    Args:
        model: any model.
        record: the protein.
        forms: what is made of it; layers come in ascending order, rows from top to bottom.
        layers: 0-based, as `chosen_layers` gives them.
        heads: 0-based, as `chosen_heads` gives them.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    span = slice(0, len(record) + alphabet.NUM_SPECIAL_TOKENS)

    def visit(place: int, call: LayerCall) -> None:
        for start, weights in call.blocks(heads, span):
            for form in forms:
                form.add(place, start, weights)

    visit_layers(model, record, visit, layers=layers)


def attention_matrices(
    model: ProteinLM,
    record: SequenceRecord,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Attention of one protein, (layers, heads, L + 2, L + 2); <cls> is the first token, <eos> the last.

    Rows sum to 1, except with the kinds whose weights may be negative (see docs/kinds_of_attention.md).

    For a linear kind this is the matrix φ(q)·φ(k) / normalizer that the layer applies without ever forming it.
    Memory grows with the square of the length; `attention_forms` has forms for long proteins.

    Args:
        model: any model.
        record: the protein.
        layers: 0-based layers to keep, in that order; None for all.
        heads: 0-based heads to keep, in that order; None for all.

    Raises:
        InputError: the protein is longer than the model's window.
        ConfigError: a layer or head that the model does not have.
    """
    check_length(record, model)  # before there is memory for it
    numbers, places = chosen_layers(model, layers), chosen_heads(model, heads)
    length = len(record) + alphabet.NUM_SPECIAL_TOKENS
    matrices = np.zeros((len(numbers), len(places), length, length), dtype=np.float32)

    def visit(place: int, call: LayerCall) -> None:
        for start, weights in call.blocks(places, slice(0, length)):
            _, num_rows, seen = weights.shape
            matrices[place, :, start : start + num_rows, :seen] = weights.cpu().numpy()

    visit_layers(model, record, visit, layers=numbers)
    return matrices


def chosen_layers(model: ProteinLM, layers: Sequence[int] | None) -> list[int]:
    """0-based layers, all for None.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    return _choose(layers, model.config.num_layers, "layer")


def chosen_heads(model: ProteinLM, heads: Sequence[int] | None) -> list[int]:
    """0-based heads, all for None.

    Raises:
        ConfigError: a head that the model does not have.
    """
    return _choose(heads, model.config.num_heads, "head")


def _choose(chosen: Sequence[int] | None, count: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    for index in chosen:
        if not 0 <= index < count:
            raise ConfigError(f"{what} {index + 1} does not exist; this model has {what}s 1 to {count}")
    return list(chosen)
