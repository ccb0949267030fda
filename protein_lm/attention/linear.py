"""Linear attention, streamed: O(L) time, and memory that never holds features (L, M) for the whole sequence.

The sequence is walked in segments. Features are formed for the segment at hand only and formed again in the backward
pass; between segments runs a state Σ φ(k)ᵀ[v, 1] of M × (E + 1) numbers per head, in float32 or better. A causal segment
is cut into chunks: inside a chunk the masked product φ(Q)φ(K)ᵀ, across chunks the state, so that nothing of size
(L, M, E) appears either. The backward pass runs the same walk in reverse with the state of the gradients; it starts each
segment from the saved state, so that no error builds up by subtraction.

What is kept for the backward pass is of the size of the inputs: the output, one state per segment, and the masked
products inside chunks (CHUNK numbers per token and head), which cost more to form again than the rest of a chunk.

The column of ones behind the values makes the normalizer come out of the same products as the numerator.

Source of the chunked form: Hua et al. 2022 (arXiv 2202.10447), section 3.2; Katharopoulos et al. 2020 for the state.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.feature_maps import FeatureMap

CHUNK = 64
"""Tokens whose attention inside is formed as a masked matrix; near M·E / (M + E), and fast in matrix products."""
SEGMENT_FEATURES = 2**19
"""Features (batch × heads × tokens × M) alive at once: 2 MiB in float32, so that a segment stays in the cache."""
ALIGNMENT = 8
"""Columns added behind the values: the first is the column of ones, the rest keeps rows aligned for vector units."""


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    feature_map: FeatureMap,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
) -> Tensor:
    """Attention with the kernel φ(q)·φ(k), normalized over the keys that a query may see, in O(L).

    Args:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, any).
        feature_map: φ; its parameters receive gradients.
        causal: whether a query sees itself and what is before it, or everything.
        valid_mask: (B, L) boolean, True for real tokens; padded keys are never seen. None: all are real.

    Returns:
        (B, H, L, width of value) in the type of `value`; inside, everything is float32 (float64 for float64 input).
        A query that may see no key gives zeros.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if query.shape != key.shape or query.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: "
            "(B, H, L) must be the same in all, and E in query and key"
        )
    if valid_mask is not None and valid_mask.shape != (query.shape[0], query.shape[2]):
        raise ValueError(f"valid_mask is {tuple(valid_mask.shape)}, expected {(query.shape[0], query.shape[2])}")
    operation = _CausalLinearAttention if causal else _BidirectionalLinearAttention
    return operation.apply(query, key, value, valid_mask, feature_map, *feature_map.parameters())


class _Piece(NamedTuple):
    """Tokens `span` of the sequence, walked as `num_chunks` chunks of `chunk` tokens each."""

    span: slice
    num_chunks: int
    chunk: int


def _causal_pieces(inputs: "_Inputs") -> list[_Piece]:
    """Segments of whole chunks, then one shorter chunk for what is left."""
    length, chunk = inputs.length, CHUNK
    segment = max(inputs.segment // chunk, 1) * chunk
    whole = length - length % chunk
    pieces = []
    for start in range(0, whole, segment):
        stop = min(start + segment, whole)
        pieces.append(_Piece(slice(start, stop), (stop - start) // chunk, chunk))
    if whole < length:
        pieces.append(_Piece(slice(whole, length), 1, length - whole))
    return pieces


class _Inputs:
    """The tensors of one call, handed out piece by piece in the computing type."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, valid_mask: Tensor | None, feature_map: FeatureMap
    ) -> None:
        self.tensors = query, key, value
        self.valid_mask = valid_mask
        self.feature_map = feature_map
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.batch, self.heads, self.length, _ = query.shape
        self.groups = self.batch * self.heads
        self.segment = max(SEGMENT_FEATURES // (self.groups * feature_map.num_features), 1)
        self.value_width = value.shape[-1]
        self.state_width = self.value_width + ALIGNMENT

    def state(self) -> Tensor:
        """An empty state (B·H, M, E + alignment)."""
        shape = self.groups, self.feature_map.num_features, self.state_width
        return torch.zeros(shape, dtype=self.dtype, device=self.tensors[0].device)

    def rows(self, which: int, piece: _Piece) -> Tensor:
        """Query (0), key (1) or value (2) of a piece, (B, H, S, E); contiguous, so that one product forms all features."""
        return self.tensors[which][:, :, piece.span].to(self.dtype).contiguous()

    def masked(self, key_features: Tensor, piece: _Piece) -> Tensor:
        """Key features with those of padding set to zero: padding enters neither numerator nor normalizer."""
        if self.valid_mask is None:
            return key_features
        return key_features * self.valid_mask[:, None, piece.span, None]

    def chunks(self, rows: Tensor, piece: _Piece) -> Tensor:
        """(B, H, S, X) as (B·H·N, C, X)."""
        return rows.reshape(self.groups * piece.num_chunks, piece.chunk, rows.shape[-1])

    def extended_rows(self, chunks: Tensor) -> Tensor:
        """Chunks (B·H·N, C, E + alignment) as (B, H, S, E + alignment)."""
        return chunks.view(self.batch, self.heads, -1, self.state_width)

    def values_and_ones(self, piece: _Piece) -> Tensor:
        """[v, 1, 0…] as chunks (B·H·N, C, E + alignment)."""
        rows = self.rows(2, piece)
        extended = rows.new_zeros(*rows.shape[:3], self.state_width)
        extended[..., : self.value_width] = rows
        extended[..., self.value_width] = 1
        return self.chunks(extended, piece)

    def query_chunks(self, piece: _Piece) -> Tensor:
        """φ(q) as chunks (B·H·N, C, M)."""
        return self.chunks(self.feature_map.query_features(self.rows(0, piece)), piece)

    def key_chunks(self, piece: _Piece) -> Tensor:
        """φ(k) as chunks (B·H·N, C, M), zero for padding."""
        return self.chunks(self.masked(self.feature_map.key_features(self.rows(1, piece)), piece), piece)


class _FeatureGradients:
    """Features of a piece with their graph, and the gradients that flow back through them."""

    def __init__(self, inputs: _Inputs, needs: tuple[bool, bool], parameters: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        self.gradients = [torch.empty_like(t) if n else None for t, n in zip(inputs.tensors[:2], needs, strict=True)]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.parameter_gradients = [torch.zeros_like(p) for p in self.parameters]

    def features(self, which: int, piece: _Piece) -> tuple[Tensor, Tensor]:
        """Rows of query (0) or key (1) as a leaf, and their features as chunks, with a graph if the map needs one."""
        inputs = self.inputs
        needs_graph = not inputs.feature_map.has_gradients
        with torch.set_grad_enabled(needs_graph):
            rows = inputs.rows(which, piece).detach().requires_grad_(needs_graph)
            if which == 0:
                features = inputs.feature_map.query_features(rows)
            else:
                features = inputs.masked(inputs.feature_map.key_features(rows), piece)
            return rows, inputs.chunks(features, piece)

    def add(self, which: int, piece: _Piece, rows: Tensor, features: Tensor, gradient: Tensor) -> None:
        """Send `gradient` (like `features`) back to the rows and to the map's parameters."""
        target = self.gradients[which]
        if target is None and not self.parameters:
            return
        feature_map = self.inputs.feature_map
        if feature_map.has_gradients:
            assert target is not None and not self.parameters, (
                "only maps without parameters have gradients of their own"
            )
            backward = feature_map.query_gradient if which == 0 else feature_map.key_gradient
            shape = *rows.shape[:3], features.shape[-1]
            target[:, :, piece.span] = backward(rows, features.view(shape), gradient.view(shape))
            return
        grad_rows, *grad_parameters = torch.autograd.grad(
            features, [rows, *self.parameters], gradient, allow_unused=True, materialize_grads=True
        )
        if target is not None:
            target[:, :, piece.span] = grad_rows
        for total, part in zip(self.parameter_gradients, grad_parameters, strict=True):
            total.add_(part)

    def of_parameters(self, parameters: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
        """Gradients in the order of `parameters`."""
        remaining = iter(self.parameter_gradients)
        return (next(remaining) if p.requires_grad else None for p in parameters)


def _normalize(numerator: Tensor, inputs: _Inputs, piece: _Piece, output: Tensor, normalizer: Tensor) -> None:
    """Write numerator / normalizer of a piece to `output`, and the normalizer (1 where no key is seen) for later."""
    rows = inputs.extended_rows(numerator)
    divisor = rows[..., inputs.value_width : inputs.value_width + 1]
    divisor = torch.where(divisor == 0, 1, divisor)
    normalizer[:, :, piece.span] = divisor
    output[:, :, piece.span] = rows[..., : inputs.value_width] / divisor


def _grad_of_numerator(grad: Tensor, output: Tensor, normalizer: Tensor, inputs: _Inputs, piece: _Piece) -> Tensor:
    """Gradient of [numerator, normalizer, 0…] as chunks (B·H·N, C, E + alignment)."""
    grad = grad[:, :, piece.span].to(inputs.dtype)
    extended = grad.new_zeros(*grad.shape[:3], inputs.state_width)
    scaled = torch.div(grad, normalizer[:, :, piece.span], out=extended[..., : inputs.value_width])
    extended[..., inputs.value_width] = -(scaled * output[:, :, piece.span]).sum(-1)
    return inputs.chunks(extended, piece)


class _CausalLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, valid_mask, feature_map, *parameters) -> Tensor:
        inputs = _Inputs(query, key, value, valid_mask, feature_map)
        pieces = _causal_pieces(inputs)
        output = torch.empty_like(value, dtype=inputs.dtype, memory_format=torch.contiguous_format)
        normalizer = output.new_empty(*output.shape[:3], 1)
        state = inputs.state()
        saved_states, saved_weights = [], []
        keep = any(ctx.needs_input_grad)
        with torch.autocast(query.device.type, enabled=False):
            for piece in pieces:
                if keep:
                    saved_states.append(state.clone())
                queries, keys = inputs.query_chunks(piece), inputs.key_chunks(piece)
                values = inputs.values_and_ones(piece)
                states = _chunk_states(keys, values, state, piece.num_chunks)
                weights = torch.bmm(queries, keys.mT).tril_()
                if keep:
                    saved_weights.append(weights)
                numerator = torch.bmm(queries, states).baddbmm_(weights, values)
                _normalize(numerator, inputs, piece, output, normalizer)
        common = query, key, value, valid_mask, output, normalizer
        ctx.save_for_backward(*common, *saved_states, *saved_weights, *parameters)
        ctx.feature_map, ctx.pieces = feature_map, pieces
        return output.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, valid_mask, output, normalizer, *rest = ctx.saved_tensors
        count = len(ctx.pieces)
        saved_states, saved_weights, parameters = rest[:count], rest[count : 2 * count], tuple(rest[2 * count :])
        inputs = _Inputs(query, key, value, valid_mask, ctx.feature_map)
        through = _FeatureGradients(inputs, ctx.needs_input_grad[:2], parameters)
        grad_value = torch.empty_like(value)
        grad_state = inputs.state()
        with torch.autocast(query.device.type, enabled=False):
            backwards = zip(reversed(ctx.pieces), reversed(saved_states), reversed(saved_weights), strict=True)
            for piece, saved_state, weights in backwards:
                query_rows, queries = through.features(0, piece)
                key_rows, keys = through.features(1, piece)
                q, k, values = queries.detach(), keys.detach(), inputs.values_and_ones(piece)
                grad = _grad_of_numerator(grads[0], output, normalizer, inputs, piece)
                states = _chunk_states(k, values, saved_state.clone(), piece.num_chunks)
                grad_states = _chunk_states(q, grad, grad_state, piece.num_chunks, reverse=True)
                grad_weights = torch.bmm(grad, values.mT).tril_()
                grad_values = torch.bmm(k, grad_states).baddbmm_(weights.mT, grad)
                grad_value[:, :, piece.span] = inputs.extended_rows(grad_values)[..., : inputs.value_width]
                through.add(0, piece, query_rows, queries, torch.bmm(grad, states.mT).baddbmm_(grad_weights, k))
                through.add(1, piece, key_rows, keys, torch.bmm(values, grad_states.mT).baddbmm_(grad_weights.mT, q))
        return *through.gradients, grad_value, None, None, *through.of_parameters(parameters)


def _chunk_states(left: Tensor, right: Tensor, state: Tensor, num_chunks: int, *, reverse: bool = False) -> Tensor:
    """State (G·N, M, X) that each chunk starts from, for chunk contributions leftᵀ·right; `state` (G, M, X) runs on in place.

    A running sum over N chunks is a product with a triangle of ones: one pass over memory instead of 2 N small ones.
    """
    contributions = torch.bmm(left.mT, right).view(state.shape[0], num_chunks, -1)
    ones = contributions.new_ones(num_chunks, num_chunks)
    before = (ones.triu(1) if reverse else ones.tril(-1)).expand(state.shape[0], -1, -1)
    states = torch.baddbmm(state.view(state.shape[0], 1, -1), before, contributions)
    end = 0 if reverse else num_chunks - 1
    torch.add(states[:, end], contributions[:, end], out=state.view(state.shape[0], -1))
    return states.view(-1, *state.shape[1:])


class _BidirectionalLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, valid_mask, feature_map, *parameters) -> Tensor:
        inputs = _Inputs(query, key, value, valid_mask, feature_map)
        pieces = _whole_pieces(inputs)
        output = torch.empty_like(value, dtype=inputs.dtype, memory_format=torch.contiguous_format)
        normalizer = output.new_empty(*output.shape[:3], 1)
        state = inputs.state()
        with torch.autocast(query.device.type, enabled=False):
            for piece in pieces:
                state.baddbmm_(inputs.key_chunks(piece).mT, inputs.values_and_ones(piece))
            for piece in pieces:
                _normalize(torch.bmm(inputs.query_chunks(piece), state), inputs, piece, output, normalizer)
        ctx.save_for_backward(query, key, value, valid_mask, output, normalizer, state, *parameters)
        ctx.feature_map = feature_map
        return output.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, valid_mask, output, normalizer, state, *rest = ctx.saved_tensors
        parameters = tuple(rest)
        inputs = _Inputs(query, key, value, valid_mask, ctx.feature_map)
        pieces = _whole_pieces(inputs)
        through = _FeatureGradients(inputs, ctx.needs_input_grad[:2], parameters)
        grad_value = torch.empty_like(value)
        grad_state = inputs.state()
        with torch.autocast(query.device.type, enabled=False):
            for piece in pieces:
                rows, queries = through.features(0, piece)
                grad = _grad_of_numerator(grads[0], output, normalizer, inputs, piece)
                grad_state.baddbmm_(queries.detach().mT, grad)
                through.add(0, piece, rows, queries, torch.bmm(grad, state.mT))
            for piece in pieces:
                rows, keys = through.features(1, piece)
                grad_values = torch.bmm(keys.detach(), grad_state)
                grad_value[:, :, piece.span] = inputs.extended_rows(grad_values)[..., : inputs.value_width]
                through.add(1, piece, rows, keys, torch.bmm(inputs.values_and_ones(piece), grad_state.mT))
        return *through.gradients, grad_value, None, None, *through.of_parameters(parameters)


def _whole_pieces(inputs: _Inputs) -> list[_Piece]:
    """Segments that are one chunk each: without causality there is nothing to mask inside."""
    starts = range(0, inputs.length, inputs.segment)
    stops = [min(start + inputs.segment, inputs.length) for start in starts]
    return [_Piece(slice(a, b), 1, b - a) for a, b in zip(starts, stops, strict=True)]
