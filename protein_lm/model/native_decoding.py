"""Decoding by the compiled kernels: one token more through all blocks in one call.

The kernels know causal models whose layers all have linear attention with ReLU, softmax or ELU + 1 features. Weights are
float32 on a CPU, laid out by `ProteinLM.arrange_for_decoding`. The states are those of the torch path, changed in place, so
that either path may resume from the other.
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.attention.backends.native_linear import FEATURES_STEP, FORMS
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.model.block import Block, LayerState
from protein_lm.model.linear_layer import Linear
from protein_lm.native.library import kernels
from protein_lm.native.structures import DecodingBlock, DecodingLinear, DecodingNorm, DecodingStep

WIDTH_STEP = 32
"""Widths of the model and of its feed-forward layers are multiples of it; widths of heads, of half of it."""
MOST_FEATURES = 1024
GAP = 16
"""float32 numbers between columns of weights: a cache line."""


class CompiledDecoding:
    """The blocks of a model and one state of theirs, as the kernels see them."""

    def __init__(self, blocks: Sequence[Block], states: Sequence[LayerState]) -> None:
        """Gather the addresses of weights and states; these must not move, see `fits`."""
        for state in states:
            state.before = state.before.contiguous()
        first, sums = blocks[0], states[0].attention.sums
        self._states = states
        self._kept: list[Any] = []
        self._library = kernels()
        self._watched = _watched(blocks, states)
        self._blocks = (DecodingBlock * len(blocks))(*map(self._block, blocks, states))
        width, inner = first.attention.output_projection.in_features, first.feedforward.output_projection.in_features
        batch = sums.shape[0] // first.attention.num_heads
        self._scratch = torch.empty(batch, 5 * width + inner)
        self._step = DecodingStep(
            batch=batch,
            width=width,
            heads=first.attention.num_heads,
            num_features=sums.shape[1],
            inner=inner,
            state_width=sums.shape[2],
            num_blocks=len(blocks),
            num_places=states[0].attention.waiting_keys.shape[1],
            scratch=self._scratch.data_ptr(),
        )
        self._step.blocks = ctypes.addressof(self._blocks)

    def fits(self, blocks: Sequence[Block], states: Sequence[LayerState]) -> bool:
        """Tell whether the kernels, the modules and the addresses of weights and states are unchanged."""
        return kernels() is self._library and self._watched == _watched(blocks, states) and not blocks[0].training

    def step(self, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Take (B, 1, D) through all blocks, to (B, 1, D); rotary tables are (B, 1, 1, E / 2)."""
        assert self._library is not None
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        tables = [table.contiguous() for table in rotary or ()]
        step = self._step
        num_waiting = self._states[0].attention.num_waiting
        step.settles = num_waiting == step.num_places
        step.num_waiting = 0 if step.settles else num_waiting
        step.hidden, step.num_threads = hidden.data_ptr(), torch.get_num_threads()
        step.cosines, step.sines = [table.data_ptr() for table in tables] or (None, None)
        self._library.decode(step)
        for state in self._states:
            state.attention.num_waiting = step.num_waiting + 1
        return hidden

    def _block(self, block: Block, state: LayerState) -> DecodingBlock:
        attention = block.attention
        form = FORMS[type(attention.operation.feature_map)](attention.operation.feature_map)
        taps = attention.convolution.weight if attention.convolution is not None else None
        arrays = {
            "taps": taps,
            "query_gain": attention.query_norm.gain if attention.query_norm is not None else None,
            "key_gain": attention.key_norm.gain if attention.key_norm is not None else None,
            "half_norms": form.half_norms,
            "before": state.before,
            "sums": state.attention.sums,
            "keys": state.attention.waiting_keys,
            "values": state.attention.waiting_values,
        }
        projection = arranged(form.projection)
        self._kept += [arrays, projection]  # nothing else holds some of them
        facts = DecodingBlock(**{name: array.data_ptr() for name, array in arrays.items() if array is not None})
        facts.attention_norm, facts.feedforward_norm = map(_norm, (block.attention_norm, block.feedforward_norm))
        facts.input, facts.output, facts.up, facts.down = (
            DecodingLinear.of(linear.weight, linear.bias) for linear in _linears(block)
        )
        facts.projection = DecodingLinear.of(projection, None)
        facts.map, facts.num_taps = form.number, 0 if taps is None else taps.shape[0]
        facts.epsilon, facts.headroom, facts.floor, facts.scale = form.constants
        return facts


def arranged(weight: Tensor) -> Tensor:
    """Lay weights (outputs, inputs) out by columns, with a gap behind each.

    Numbers of outputs are often powers of two. Without the gap, one output's weights of all inputs would share a few lines
    of the caches.
    """
    outputs = weight.shape[0]
    return nn.functional.pad(weight.T, (0, GAP))[:, :outputs].T


def can_be_compiled(blocks: Iterable[nn.Module]) -> bool:
    """Tell whether there are kernels, and all blocks are of the kind that they know."""
    return kernels() is not None and all(isinstance(block, Block) and _is_known(block) for block in blocks)


def _is_known(block: Block) -> bool:
    attention, feedforward = block.attention, block.feedforward
    operation = attention.operation
    width, inner = attention.output_projection.in_features, feedforward.output_projection.in_features
    return (
        type(operation) is LinearOperation
        and type(operation.feature_map) in FORMS
        and operation.feature_map.num_features % FEATURES_STEP == 0
        and operation.feature_map.num_features <= MOST_FEATURES
        and width % WIDTH_STEP == 0
        and inner % WIDTH_STEP == 0
        and (width // attention.num_heads) % (WIDTH_STEP // 2) == 0
        and not block.training
        and all(type(linear) is Linear and _is_arranged(linear.weight) for linear in _linears(block))
        and all(type(norm) is nn.LayerNorm for norm in (block.attention_norm, block.feedforward_norm))
    )


def _linears(block: Block) -> tuple[nn.Linear, ...]:
    """The layers input, output, up and down, as the kernels call them."""
    attention, feedforward = block.attention, block.feedforward
    return (
        attention.input_projection,
        attention.output_projection,
        feedforward.input_projection,
        feedforward.output_projection,
    )


def _norm(norm: Any) -> DecodingNorm:
    return DecodingNorm(norm.weight.data_ptr(), None if norm.bias is None else norm.bias.data_ptr())


def _is_arranged(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.stride(0) == 1


def _watched(blocks: Sequence[Block], states: Sequence[LayerState]) -> tuple[Any, ...]:
    """The modules and addresses that may be replaced from one step to the next."""
    return tuple(
        item
        for block, state in zip(blocks, states, strict=True)
        for linears in (_linears(block),)
        for item in (
            *linears,
            linears[0].weight.data_ptr(),
            state.before.data_ptr(),
            state.attention.sums.data_ptr(),
            state.attention.waiting_keys.data_ptr(),
        )
    )
