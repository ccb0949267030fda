"""The walk over the attention matrices of one protein, for any kind of attention.

Linear kinds never form their matrices. Here they are formed some rows at a time, and each form takes what it needs from the
rows that pass by. Layers and heads are numbered from 1. A slot is the index of a layer among the chosen ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.kinds.interface import AttentionOperation
from protein_lm.attention.rows import Rows
from protein_lm.batches.packed_batches import pack
from protein_lm.errors import ConfigError
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

BLOCK_BYTES = 2**24
"""Size of the rows of a matrix that are formed at a time, all heads together."""


class Form(Protocol):
    """Anything that is computed from the rows of matrices as they pass by."""

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        """Take the rows from token `start` on, (heads, S, T) as `LayerCall.blocks` gives them, of the layer at `slot`."""
        ...


class LayerCall(NamedTuple):
    """Inputs and output of one attention operation, in one pass."""

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
        """Form the matrix of the only sequence, from top to bottom of a span of queries.

        Yields:
            Token index of the first of S queries, and their weights (heads, S, T) in float32, as
            `AttentionOperation.matrix_rows` gives them.
        """
        indices = [head - 1 for head in heads]
        formed = indices if self.operation.heads_are_alike else list(range(self.query.shape[1]))
        rows = self.operation.matrix_rows(self.query[:, formed], self.key[:, formed])
        size = max(1, BLOCK_BYTES // (4 * len(formed) * self.query.shape[2]))
        for start in range(span.start, span.stop, size):
            block = rows(slice(start, min(start + size, span.stop)))[0].float()
            yield start, block if self.operation.heads_are_alike else block[indices]

    def show(self, forms: Sequence[Form], slot: int, heads: Sequence[int], span: slice) -> None:
        """Hand the blocks to all forms, as those of the layer at `slot`."""
        for start, weights in self.blocks(heads, span):
            for form in forms:
                form.add(slot, start, weights)


@contextmanager
def visited_calls(model: ProteinLM, visit: Callable[[int, LayerCall], None]) -> Iterator[None]:
    """Show every attention operation that runs inside to `visit`, with the number of its layer, as soon as it has run."""

    def hook(layer: int) -> Callable[..., None]:
        def show(operation: Any, inputs: Any, output: Tensor) -> None:
            query, key, value, rows = inputs
            visit(layer, LayerCall(operation, query, key, value, rows, output))

        return show

    handles = [operation.register_forward_hook(hook(layer)) for layer, operation in enumerate(model.operations(), 1)]
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
    """Read a protein and show the calls of some layers to `visit`, with their slots. One call is in memory at a time.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    check_length(record, model)
    tokens, _ = pack([record.tokens])

    def show(layer: int, call: LayerCall) -> None:
        for slot, chosen in enumerate(layers):
            if chosen == layer:
                visit(slot, call)

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
    """Walk over the attention of one protein, and hand its rows to all forms.

    <cls> is the first token, <eos> the last. Layers come in ascending order, rows from top to bottom.

    Args:
        model: any model.
        record: the protein.
        forms: what is computed.
        layers: numbers of the layers, as `chosen_layers` gives them.
        heads: numbers of the heads, as `chosen_heads` gives them.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    span = slice(0, len(record) + alphabet.NUM_SPECIAL_TOKENS)
    visit_layers(model, record, lambda slot, call: call.show(forms, slot, heads, span), layers=layers)


def chosen_layers(model: ProteinLM, layers: Sequence[int] | None) -> list[int]:
    """Check numbers of layers; None stands for all of them.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    return _choose(layers, model.config.num_layers, "layer")


def chosen_heads(model: ProteinLM, heads: Sequence[int] | None) -> list[int]:
    """Check numbers of heads; None stands for all of them.

    Raises:
        ConfigError: a head that the model does not have.
    """
    return _choose(heads, model.config.num_heads, "head")


def _choose(chosen: Sequence[int] | None, count: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(1, count + 1))
    for number in chosen:
        if not 1 <= number <= count:
            raise ConfigError(f"{what} {number} does not exist; this model has {what}s 1 to {count}")
    return list(chosen)
