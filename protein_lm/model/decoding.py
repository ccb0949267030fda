"""Decoding: the state of a causal model, and the torch path of new tokens through its blocks.

This module is the reference of the backends of decoding. `language_model` has their table.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from protein_lm.attention.rows import WHOLE
from protein_lm.model.block import Block, LayerState

GAP = 16
"""float32 numbers between columns of weights: a cache line."""


@dataclass
class DecodingState:
    """The state of a causal model after the tokens that it has read."""

    layers: list[LayerState]
    before: Tensor
    """(B, context) last tokens, for the k-mers."""
    num_tokens: Tensor
    """(B,) tokens that each row has read, on the CPU."""
    prepared: Any = None
    """Whatever a backend keeps from one step to the next."""

    def put(self, row: int, other: "DecodingState") -> None:
        """Make a row resume from `other`, a state of one row; only where the model's `rows_can_be_replaced`."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.attention.put(row, new.attention)
            layer.before[row] = new.before[0]
        self.before[row] = other.before[0]
        self.num_tokens[row] = other.num_tokens[0]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows (K,) of a batch, by number and on the CPU, and no others, in this order."""
        for layer in self.layers:
            layer.attention.keep(rows)
            layer.before = layer.before[rows.to(layer.before.device)]
        self.before = self.before[rows.to(self.before.device)]
        self.num_tokens = self.num_tokens[rows]

    def repeated(self, times: int) -> "DecodingState":
        """Return a state of `times` rows that resume, each in its own way, from the one row of this state (B = 1)."""
        state = deepcopy(replace(self, prepared=None))
        state.keep(torch.zeros(times, dtype=torch.int64))
        return state


class DecodingInputs(NamedTuple):
    """New tokens of all rows, and the blocks that read them."""

    hidden: Tensor
    """(B, S, D) embeddings."""
    rotary: tuple[Tensor, Tensor] | None
    """Tables (B, 1, S, E / 2) of cosines and sines, if any."""
    blocks: Sequence[Block]
    state: DecodingState
    """The state before these tokens; `forward` changes its layers."""


def takes(inputs: DecodingInputs) -> bool:
    """Tell that torch computes every call."""
    return True


def forward(inputs: DecodingInputs) -> Tensor:
    """Return the hidden states (B, S, D) behind the last block."""
    hidden, rotary, blocks, state = inputs
    for block, layer in zip(blocks, state.layers, strict=True):
        hidden = block(hidden, rotary, WHOLE, layer)
    return hidden


def arranged(weight: Tensor) -> Tensor:
    """Lay weights (outputs, inputs) out by columns, with a gap behind each.

    Numbers of outputs are often powers of two. Without the gap, one output's weights of all inputs would share a few lines
    of the caches.
    """
    outputs = weight.shape[0]
    return nn.functional.pad(weight.T, (0, GAP))[:, :outputs].T
