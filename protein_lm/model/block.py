"""A pre-norm transformer block: x += attention(norm(x)); x += feedforward(norm(x))."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.dispatch import rotate, rotate_parts
from protein_lm.attention.kinds.interface import AttentionOperation, LayerShape
from protein_lm.attention.kinds.table import build_attention
from protein_lm.attention.rows import Rows
from protein_lm.choices import Objective
from protein_lm.config import ModelConfig
from protein_lm.model.linear_layer import Linear, takes
from protein_lm.model.recompute import recomputed, to_autocast_dtype


@dataclass
class LayerState:
    """The state of a causal layer after the tokens that it has read."""

    attention: Any
    """State of the attention operation (see `AttentionOperation.new_state`)."""
    before: Tensor
    """(B, taps - 1, D) last inputs of the convolution."""


class ShortConvolution(nn.Module):
    """Adds to each token a weighted sum of the `taps` tokens that end with it (causal) or surround it, by channel.

    Linear attention is poor at picking out exact neighbours, where short-range statistics of sequences are. A few taps per
    layer give it these at hardly any cost.

    Sources: So et al. 2021 (Primer, arXiv 2109.08668); Poli et al. 2023 (Hyena, arXiv 2302.10866).
    """

    def __init__(self, width: int, taps: int, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, width))
        self.first_offset = taps - 1 if causal else (taps - 1) // 2

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D); padding and other sequences of a packed row add nothing."""
        taps, length = self.weight.shape[0], hidden.shape[1]
        source = hidden if rows.valid_mask is None else hidden * rows.valid_mask.unsqueeze(-1)
        around = self.first_offset, taps - 1 - self.first_offset
        part = rows.part
        padded = functional.pad(source, (0, 0, *around)) if part is None else part.with_neighbours(source, *around)
        result = hidden
        for tap in range(taps):
            neighbours = padded[:, tap : tap + length]
            if rows.packing is not None and (offset := tap - self.first_offset):
                neighbours = neighbours * rows.packing.has_neighbour(offset, hidden.device).unsqueeze(-1)
            result = torch.addcmul(result, neighbours, self.weight[tap].to(hidden.dtype))
        return result

    def extend(self, hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Output of new tokens (B, S, D) that follow the `taps - 1` tokens `before`, and the next `before`; if causal."""
        taps, length = self.weight.shape[0], hidden.shape[1]
        source = torch.cat((before, hidden), dim=1)
        result = hidden
        for tap in range(taps):
            result = torch.addcmul(result, source[:, tap : tap + length], self.weight[tap].to(hidden.dtype))
        return result, source[:, length:]


class HeadNorm(nn.Module):
    """Root-mean-square norm of queries or keys per head, with a learned gain per channel.

    The gain begins at E^(-1/4). The rows x = q E^(-1/4) of softmax features then have norm 1, where their estimate is good;
    training may raise it. Source: Henry et al. 2020 (arXiv 2010.04245); the initial gain is ours.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((head_width,), head_width**-0.25))

    def forward(self, heads: Tensor) -> Tensor:
        """(B, H, L, E) -> (B, H, L, E) in float32 or better."""
        heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
        return functional.rms_norm(heads, self.gain.shape, self.gain.to(heads.dtype), eps=1e-6)


class AttentionLayer(nn.Module):
    """Projects to queries, keys and values, applies positions, calls one operation, projects back."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        operation: AttentionOperation,
        convolution: ShortConvolution | None = None,
        *,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.convolution = convolution
        self._parts = (1 if operation.shares_query_and_key else 2, 1)
        """Number of projections that positions apply to, and of others."""
        self.input_projection = Linear(width, sum(self._parts) * operation.heads_per_output * width)
        self.query_norm = HeadNorm(width // num_heads) if qk_norm else None
        self.key_norm = HeadNorm(width // num_heads) if qk_norm and not operation.shares_query_and_key else None
        self.operation = operation
        self.output_projection = Linear(width, width)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        rows: Rows,
        state: LayerState | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Output (B, L, D) of hidden states (B, L, D).

        Args:
            hidden: inputs of the layer.
            rotary: tables (L, E / 2) of cosines and sines, if any.
            rows: padding and packing.
            state: state of the tokens that these follow; it is updated in place.
            selected: indices (K,) of tokens, numbered row by row; the output is then theirs alone, (K, D).
        """
        batch, length, width = hidden.shape
        if self.convolution is not None:
            if state is None:
                hidden = self.convolution(hidden, rows)
            else:
                hidden, state.before = self.convolution.extend(hidden, state.before)
        heads = self.num_heads * self.operation.heads_per_output
        # (B, L, parts H E) -> (parts, B, H, L, E): queries and keys first, then values.
        projected = self.input_projection(hidden).view(batch, length, sum(self._parts), heads, -1)
        parts = projected.permute(2, 0, 3, 1, 4)
        if rotary is not None and self.query_norm is None:
            *queries_and_keys, value = rotate_parts(parts, self._parts[0], *rotary)
        else:
            # Split, not indexed: the gradient of an index is written into a tensor of zeros of the size of the whole.
            queries_and_keys, values = parts.split(self._parts)
            value = values.squeeze(0)
            norms = [norm for norm in (self.query_norm, self.key_norm) if norm is not None]
            if norms:
                pairs = zip(norms, queries_and_keys.unbind(0), strict=True)
                queries_and_keys = torch.stack([norm(part) for norm, part in pairs])
            if rotary is not None:
                queries_and_keys = rotate(queries_and_keys, *rotary)
            queries_and_keys = queries_and_keys.unbind(0)
        query, key = queries_and_keys[0], queries_and_keys[-1]
        if state is None:
            output = self.operation(query, key, value, rows)
        else:
            output = self.operation.extend(query, key, value, state.attention)
        return self.output_projection(_select(selected, output.transpose(1, 2).reshape(batch, length, width)))

    def new_state(self, batch_size: int) -> LayerState:
        """The state before the first token."""
        like, width = self.output_projection.weight, self.output_projection.in_features
        taps = self.convolution.weight.shape[0] if self.convolution is not None else 1
        attention = self.operation.new_state(batch_size, self.num_heads, width // self.num_heads, like.device)
        return LayerState(attention, like.new_zeros(batch_size, taps - 1, width))


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.input_projection = Linear(width, inner_width)
        self.output_projection = Linear(inner_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        inner = self.input_projection(hidden)
        if type(self.output_projection) is Linear and takes(inner, self.output_projection.weight):
            return self.output_projection(inner, activates=True)
        activated = functional.gelu(inner)
        with recomputed(activated, lambda: functional.gelu(inner)):
            return self.output_projection(activated)


class Block(nn.Module):
    """Attention and feed-forward layer, each with a norm before it and a residual connection."""

    def __init__(
        self,
        attention: AttentionLayer,
        feedforward: FeedForward,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = norms[0], attention
        self.feedforward_norm, self.feedforward = norms[1], feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        rows: Rows,
        state: LayerState | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (K, D) for selected tokens; arguments as those of `AttentionLayer.forward`."""
        before, normed = hidden, self._attention_input(hidden)
        with recomputed(normed, lambda: self._attention_input(before)):
            attended = self.attention(normed, rotary, rows, state, selected)
        hidden = _select(selected, hidden) + self.dropout(attended)
        normed = to_autocast_dtype(self.feedforward_norm(hidden))
        with recomputed(normed, lambda: to_autocast_dtype(self.feedforward_norm(hidden))):
            return hidden + self.dropout(self.feedforward(normed))

    def _attention_input(self, hidden: Tensor) -> Tensor:
        normed = self.attention_norm(hidden)
        return normed if self.attention.convolution is not None else to_autocast_dtype(normed)


def _select(selected: Tensor | None, hidden: Tensor) -> Tensor:
    """Rows (K, D) of hidden states (B, L, D), or all of them unchanged."""
    return hidden if selected is None else hidden.flatten(0, 1).index_select(0, selected)


def build_block(config: ModelConfig, layer: int) -> Block:
    """Return a block of a model; `layer` counts from 0."""
    causal = config.objective is Objective.CAUSAL
    shape = LayerShape(
        num_heads=config.num_heads,
        head_width=config.width // config.num_heads,
        causal=causal,
        max_length=config.max_length,
        seed=layer,
    )
    operation = build_attention(config.attention_layers[layer], shape)
    taps = config.convolution_taps
    convolution = ShortConvolution(config.width, taps, causal=causal) if taps else None
    return Block(
        AttentionLayer(config.width, config.num_heads, operation, convolution, qk_norm=config.qk_norm),
        FeedForward(config.width, config.feedforward_width),
        (nn.LayerNorm(config.width), nn.LayerNorm(config.width)),
        config.dropout,
    )
