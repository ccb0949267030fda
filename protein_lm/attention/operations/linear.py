"""Linear attention by torch, streamed: O(L) time, and features (L, M) never exist for the whole sequence.

Forward: the sequence is walked in pieces, whose features are formed one piece at a time. From piece to piece runs a state
Σ φ(k)ᵀ[v, 1] of M × (E + 1) numbers per head. A causal piece is cut into chunks. Inside a chunk, the masked product φ(Q)φ(K)ᵀ
weighs the values; across chunks, the state does. So nothing of size (L, M, E) exists either.

Backward: the same walk in reverse, with the state of the gradients. Features are formed again. Each piece starts from its
saved state, so that no error builds up by subtraction. Memory is that of the inputs: the output, one state per piece, and in
float32 the masked products (CHUNK numbers per token and head), which there cost most to form again.

Normalizers: a column of ones behind the values makes the normalizer come out of the same products as the numerator. bfloat16
products would round it, so there it is summed separately in float32.

Letters: B rows, H heads, G = B·H groups, L tokens, E width of a head, M features, X width of values + alignment; a piece has
N chunks of C slots, S = N·C.

Source of the chunked form: Hua et al. 2022 (arXiv 2202.10447), section 3.2; Katharopoulos et al. 2020 for the state.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.backends.interface import LinearInputs
from protein_lm.attention.operations.linear_pieces import Piece, Run, bidirectional_runs, causal_pieces
from protein_lm.attention.operations.linear_stream import FeatureGradients, Stream
from protein_lm.attention.packing import Packing
from protein_lm.attention.sequence_parallel import Part

CHUNK = {torch.bfloat16: 128}
"""Tokens of a chunk, by type of products: near M·E / (M + E), and fast in matrix products."""
DEFAULT_CHUNK = 64
PACKED_CHUNK = 64
"""Tokens of a chunk of packed rows: on average half a chunk stays empty at the end of each sequence."""
SEGMENT_BYTES = 2**21
"""Features of one piece (B·H·S·M numbers of the product type): they stay in the cache."""
FEWEST_TOKENS = 512
"""A piece of fewer tokens would spend its time on states, so only as many rows go together as leave room for these."""


def takes(inputs: LinearInputs) -> bool:
    """Tell that this path takes every call: it is the reference."""
    return True


def forward(inputs: LinearInputs) -> Tensor:
    """Compute `dispatch.linear_attention` with torch; parameters of the feature map receive gradients too."""
    query, key, value, feature_map, causal, product, valid_mask, packing, part = inputs
    operation = _CausalLinearAttention if causal else _BidirectionalLinearAttention
    settings = packing, part, feature_map, product, *feature_map.parameters()
    # Processes whose stretches have different lengths must split the batch in the same way.
    fewest_tokens = FEWEST_TOKENS if part is not None else min(query.shape[2], FEWEST_TOKENS)
    size = query.shape[1] * feature_map.num_features * product.itemsize * fewest_tokens
    num_rows = max(1, SEGMENT_BYTES // size)
    if query.shape[0] <= num_rows:  # no split: its gradient would copy
        return operation.apply(query, key, value, valid_mask, *settings)
    masks = [None] * query.shape[0] if valid_mask is None else valid_mask.split(num_rows)
    parts = zip(query.split(num_rows), key.split(num_rows), value.split(num_rows), masks, strict=False)
    return torch.cat([operation.apply(*tensors, *settings) for tensors in parts])


class CausalWalk(NamedTuple):
    """Results of a causal pass."""

    output: Tensor
    """(B, H, L, width of value) in the type of the values."""
    normalizer: Tensor
    """(B, H, L, 1) in the computing type, 1 where no key is seen."""
    saved_states: list[Tensor]
    """State (G, 1, M·X) at the start of each piece."""
    saved_weights: list[Tensor]
    """Masked products φ(Q)φ(K)ᵀ (G·N, C, C) of each piece."""


def walk_causal(stream: Stream, pieces: list[Piece], state: Tensor, *, keep: bool) -> CausalWalk:
    """Attend from left to right.

    `state` (G, 1, M·X) holds the tokens before the first piece, and in the end all tokens. `keep` saves what the backward
    pass needs.
    """
    value = stream.tensors[2]
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    normalizer = output.new_empty(*output.shape[:3], 1, dtype=stream.dtype)
    walk = CausalWalk(output, normalizer, [], [])
    for piece in pieces:
        if keep:
            walk.saved_states.append(state.clone())
        query_features, key_features = stream.query_chunks(piece), stream.key_chunks(piece)
        queries, keys, values = (
            stream.operand(query_features),
            stream.operand(key_features),
            stream.values_and_ones(piece),
        )
        # What each chunk adds to the state, and the state that each chunk starts from: (G·N, M, X).
        contributions = _contributions(stream, piece, key_features, keys, values)
        states = _chunk_states(contributions, state, piece.flow)
        # Inside chunks: (G·N, C, C), a query sees itself and the keys before it.
        weights = torch.bmm(queries, keys.mT).tril_()
        if keep and _keeps_weights(stream):
            walk.saved_weights.append(weights)
        # Numerator and, behind it, normalizer (G·N, C, X): the chunks before plus the own one.
        numerator = torch.bmm(queries, stream.operand(states)).baddbmm_(weights, values)
        divisor = _divisor(stream, numerator, query_features, states)
        if stream.product != stream.dtype:
            divisor += _exact_sums(stream, weights, _real_ones(stream, values, piece))
        _normalize(stream, piece, numerator, divisor, output, normalizer)
    return walk


def causal_plan(stream: Stream, packing: Packing | None) -> list[Piece]:
    """Cut a row into the pieces of a causal pass."""
    chunk = PACKED_CHUNK if packing is not None else CHUNK.get(stream.product, DEFAULT_CHUNK)
    return causal_pieces(stream.length, chunk, _segment(stream), packing, stream.tensors[0].device)


def _bidirectional_plan(stream: Stream, packing: Packing | None) -> list[Run]:
    return bidirectional_runs(stream.length, PACKED_CHUNK, _segment(stream), packing, stream.tensors[0].device)


def _segment(stream: Stream) -> int:
    return max(1, SEGMENT_BYTES // (stream.groups * stream.feature_map.num_features * stream.product.itemsize))


def _keeps_weights(stream: Stream) -> bool:
    return stream.product.itemsize > 2


def _ones_column(stream: Stream, extended: Tensor) -> Tensor:
    return extended[..., stream.value_width : stream.value_width + 1]


def _sums(stream: Stream, left: Tensor, right: Tensor) -> Tensor:
    """Sum leftᵀ·right over the slots of each chunk: (G·N, C, M), (G·N, C, X) -> (G·N, M, X) in the computing type."""
    return torch.bmm(left.mT, right).to(stream.dtype)


def _contributions(stream: Stream, piece: Piece, key_features: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Form φ(k)ᵀ[v, 1] of each chunk (G·N, M, X) in the computing type; sums of keys are exact even if products are not."""
    contributions = _sums(stream, keys, values)
    if stream.product != stream.dtype:
        _ones_column(stream, contributions).copy_(
            _exact_sums(stream, key_features.mT, _real_ones(stream, values, piece))
        )
    return contributions


def _divisor(stream: Stream, numerator: Tensor, query_features: Tensor, states: Tensor) -> Tensor:
    """Form the normalizer (G·N, C, 1) of queries from the states (G·N, M, X); where products are exact, from all keys."""
    if stream.product == stream.dtype:
        return _ones_column(stream, numerator)
    return _exact_sums(stream, query_features, _ones_column(stream, states).mT)


def _real_ones(stream: Stream, values: Tensor, piece: Piece) -> Tensor | None:
    """Return (G·N, 1, C): 1 for real tokens, 0 for padding and empty slots; None if all are real."""
    if stream.valid_mask is None and piece.filled is None:
        return None
    return _ones_column(stream, values).mT


def _exact_sums(stream: Stream, rows: Tensor, weights: Tensor | None) -> Tensor:
    """Sum rows · weights over the last axis: (G·N, ·, ·), (G·N, 1, ·) -> (G·N, ·, 1) in the computing type."""
    weighted = rows if weights is None else rows * weights.contiguous()
    return weighted.sum(-1, keepdim=True, dtype=stream.dtype)


def _normalize(
    stream: Stream, piece: Piece, numerator: Tensor, divisor: Tensor, output: Tensor, normalizer: Tensor
) -> None:
    """Write numerator / divisor of a piece to `output`, and the divisor, 1 where no key is seen, to `normalizer`."""
    divisor = stream.unchunk(torch.where(divisor == 0, 1, divisor))
    stream.write(normalizer, piece, divisor)
    stream.write(output, piece, stream.unchunk(numerator)[..., : stream.value_width] / divisor)


def _grad_of_numerator(stream: Stream, piece: Piece, grad: Tensor, output: Tensor, normalizer: Tensor) -> Tensor:
    """Form the gradient of [numerator, normalizer, 0…] as chunks (G·N, C, X) in the product type.

    With output o = numerator / n, it is grad / n for the numerator and -Σ (grad / n) · o for the normalizer n.
    """
    rows = stream.gather(grad, piece).to(stream.dtype)
    extended = rows.new_zeros(*rows.shape[:3], stream.state_width)
    scaled = torch.div(rows, stream.gather(normalizer, piece), out=extended[..., : stream.value_width])
    extended[..., stream.value_width] = -(scaled * stream.gather(output, piece)).sum(-1)
    if piece.filled is not None:
        extended.mul_(piece.filled)
    return stream.chunks(stream.operand(extended), piece)


def _chunk_states(contributions: Tensor, state: Tensor, flow: Tensor | None, *, reverse: bool = False) -> Tensor:
    """Form the state (G·N, M, X) that each chunk starts from, out of contributions of chunks (G·N, M, X).

    `state` (G, 1, M·X) is what the first chunk starts from, and is updated in place to what follows the last one.
    A running sum over N chunks is a product with a triangle of ones: one pass over memory instead of 2 N small ones.
    In reverse, the gradient of a chunk's contribution comes from all chunks that read it.
    """
    # (G, N, M·X): a chunk's contribution as one row.
    parts = contributions.view(state.shape[0], -1, state.shape[2])
    num_chunks = parts.shape[1]
    if flow is None:
        # Row c of the triangle (N, N) adds up the chunks before c; in reverse, those after it.
        ones = parts.new_ones(num_chunks, num_chunks)
        before = (ones.triu(1) if reverse else ones.tril(-1)).expand(state.shape[0], -1, -1)
        states = torch.baddbmm(state, before, parts)
        end = 0 if reverse else num_chunks - 1
        torch.add(states[:, end], parts[:, end], out=state[:, 0])
    else:
        # (N + 1, N + 1) times (G, N + 1, M·X): sequences of a packed row stay apart.
        moved = torch.matmul(
            (flow.mT if reverse else flow).to(parts.dtype),
            torch.cat((parts, state) if reverse else (state, parts), dim=1),
        )
        states, end_state = (moved[:, 1:], moved[:, :1]) if reverse else (moved[:, :-1], moved[:, -1:])
        state.copy_(end_state)
    return states.reshape(contributions.shape)


class _CausalLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, valid_mask, packing, part, feature_map, product, *parameters) -> Tensor:
        stream = Stream(query, key, value, valid_mask, feature_map, product)
        pieces = causal_plan(stream, packing)
        state = stream.state()
        if part is not None:  # this stretch starts from the state of earlier processes
            own = _run_state(stream, _bidirectional_plan(stream, packing)[-1])
            stream.columns(state).copy_(part.from_earlier(stream.columns(own)))
        walk = walk_causal(stream, pieces, state, keep=any(ctx.needs_input_grad))
        common = query, key, value, valid_mask, walk.output, walk.normalizer
        ctx.save_for_backward(*common, *walk.saved_states, *walk.saved_weights, *parameters)
        ctx.feature_map, ctx.pieces, ctx.product, ctx.packing, ctx.part = feature_map, pieces, product, packing, part
        return walk.output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, valid_mask, output, normalizer, *rest = ctx.saved_tensors
        stream = Stream(query, key, value, valid_mask, ctx.feature_map, ctx.product)
        count = len(ctx.pieces)
        num_weights = count if _keeps_weights(stream) else 0
        saved_states, saved_weights = rest[:count], rest[count : count + num_weights]
        parameters = tuple(rest[count + num_weights :])
        through = FeatureGradients(stream, ctx.needs_input_grad[:2], parameters)
        grad_value = torch.empty_like(value)
        grad_state = stream.state()
        if ctx.part is not None:  # the gradient of this stretch's last state comes from later processes
            own = stream.state()
            for piece in _bidirectional_plan(stream, ctx.packing)[0].pieces:
                queries = stream.operand(stream.query_chunks(piece))
                grad = _grad_of_numerator(stream, piece, grads[0], output, normalizer)
                _add_to_owners(own, _sums(stream, queries, grad), piece)
            stream.columns(grad_state).copy_(ctx.part.from_later(stream.columns(own)))
        for number, piece in reversed(list(enumerate(ctx.pieces))):
            # The pass again as far as its operands: features (G·N, C, M), values and gradients (G·N, C, X).
            query_rows, query_features = through.features(0, piece)
            key_rows, key_features = through.features(1, piece)
            q, k = (stream.operand(stream.chunks(f.detach(), piece)) for f in (query_features, key_features))
            values = stream.values_and_ones(piece)
            grad = _grad_of_numerator(stream, piece, grads[0], output, normalizer)
            # Inside chunks: weights and their gradients (G·N, C, C).
            weights = saved_weights[number] if saved_weights else torch.bmm(q, k.mT).tril_()
            grad_weights = torch.bmm(grad, values.mT).tril_()
            # Queries read the state that their chunk starts from: states (G·N, M, X), gradients (G·N, C, M).
            states = _chunk_states(_sums(stream, k, values), saved_states[number].clone(), piece.flow)
            states = stream.operand(states)
            grad_queries = torch.bmm(grad, states.mT).baddbmm_(grad_weights, k)
            through.add(0, piece, query_rows, query_features, grad_queries)
            del states, grad_queries  # as large as all inputs of the piece: the next ones take their place
            # Keys and values were read by later chunks: gradients of states (G·N, M, X), of values (G·N, C, X).
            grad_states = _chunk_states(_sums(stream, q, grad), grad_state, piece.flow, reverse=True)
            grad_states = stream.operand(grad_states)
            grad_values = torch.bmm(k, grad_states).baddbmm_(weights.mT, grad)
            stream.write_grad_values(grad_value, piece, grad_values)
            grad_keys = torch.bmm(values, grad_states.mT).baddbmm_(grad_weights.mT, q)
            through.add(1, piece, key_rows, key_features, grad_keys)
            del grad_states, grad_keys
        return *through.gradients, grad_value, *[None] * 5, *through.of_parameters(parameters)


class _BidirectionalLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, valid_mask, packing, part, feature_map, product, *parameters) -> Tensor:
        stream = Stream(query, key, value, valid_mask, feature_map, product)
        runs = _bidirectional_plan(stream, packing)
        output = torch.empty_like(value, memory_format=torch.contiguous_format)
        normalizer = output.new_empty(*output.shape[:3], 1, dtype=stream.dtype)
        saved_states = []
        for number, state in _with_others(stream, len(runs), part, lambda number: _run_state(stream, runs[number])):
            operand = stream.operand(state)
            # Every query reads the whole state of its sequence: numerator and normalizer (G·N, C, X).
            for piece in runs[number].pieces:
                query_features = stream.query_chunks(piece)
                numerator = torch.bmm(stream.operand(query_features), _of_owners(stream, operand, piece))
                divisor = _divisor(stream, numerator, query_features, _of_owners(stream, state, piece))
                _normalize(stream, piece, numerator, divisor, output, normalizer)
            if runs[number].num_sequences == 1:
                saved_states.append(state)
        ctx.save_for_backward(query, key, value, valid_mask, output, normalizer, *saved_states, *parameters)
        ctx.feature_map, ctx.runs, ctx.product, ctx.part = feature_map, runs, product, part
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, valid_mask, output, normalizer, *rest = ctx.saved_tensors
        stream = Stream(query, key, value, valid_mask, ctx.feature_map, ctx.product)
        kept = [number for number, run in enumerate(ctx.runs) if run.num_sequences == 1]
        saved_states, parameters = dict(zip(kept, rest, strict=False)), tuple(rest[len(kept) :])
        through = FeatureGradients(stream, ctx.needs_input_grad[:2], parameters)
        grad_value = torch.empty_like(value)

        def through_queries(number: int) -> Tensor:
            """Form the gradient of the states of a run (G, sequences, M·X), and on the way those of its queries."""
            run = ctx.runs[number]
            # States of many short sequences would be larger than the inputs, so they were not saved.
            state = saved_states[number] if number in saved_states else _run_state(stream, run)
            operand, grad_state = stream.operand(state), stream.state(run.num_sequences)
            for piece in run.pieces:
                rows, features = through.features(0, piece)
                queries = stream.operand(stream.chunks(features.detach(), piece))
                grad = _grad_of_numerator(stream, piece, grads[0], output, normalizer)
                _add_to_owners(grad_state, _sums(stream, queries, grad), piece)
                states = _of_owners(stream, operand, piece)
                through.add(0, piece, rows, features, torch.bmm(grad, states.mT))
            return grad_state

        # Every key and value reads the gradient of the whole state of its sequence.
        for number, grad_state in _with_others(stream, len(ctx.runs), ctx.part, through_queries):
            operand = stream.operand(grad_state)
            for piece in ctx.runs[number].pieces:
                rows, features = through.features(1, piece)
                keys = stream.operand(stream.chunks(features.detach(), piece))
                grad_states = _of_owners(stream, operand, piece)
                stream.write_grad_values(grad_value, piece, torch.bmm(keys, grad_states))
                through.add(1, piece, rows, features, torch.bmm(stream.values_and_ones(piece), grad_states.mT))
        return *through.gradients, grad_value, *[None] * 5, *through.of_parameters(parameters)


def _with_others(
    stream: Stream, num_runs: int, part: Part | None, own: Callable[[int], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each run, and its states (or their gradients): `own(number)`.

    The first and the last run may share a sequence with other processes, whose states are added.
    """
    if part is None:
        yield from ((number, own(number)) for number in range(num_runs))
        return
    first = own(0)
    last = own(num_runs - 1) if num_runs > 1 else first
    from_earlier, from_later = part.from_both(stream.columns(first), stream.columns(last))
    stream.columns(first).add_(from_earlier)
    stream.columns(last).add_(from_later)
    yield 0, first
    yield from ((number, own(number)) for number in range(1, num_runs - 1))
    if num_runs > 1:
        yield num_runs - 1, last


def _run_state(stream: Stream, run: Run) -> Tensor:
    """Add up the states (G, sequences of the run, M·X) of all keys of a run."""
    state = stream.state(run.num_sequences)
    for piece in run.pieces:
        features, values = stream.key_chunks(piece), stream.values_and_ones(piece)
        _add_to_owners(state, _contributions(stream, piece, features, stream.operand(features), values), piece)
    return state


def _add_to_owners(state: Tensor, contributions: Tensor, piece: Piece) -> None:
    """Add contributions of chunks (G·N, M, X) to the states (G, sequences, M·X) of their sequences."""
    parts = contributions.view(state.shape[0], piece.num_chunks, -1)
    if piece.owners is not None:
        state.index_add_(1, piece.owners, parts)
    else:
        state += parts if piece.num_chunks == 1 else parts.sum(1, keepdim=True)


def _of_owners(stream: Stream, state: Tensor, piece: Piece) -> Tensor:
    """Give each chunk the state (G·N, M, X) of its sequence, out of (G, sequences, M·X)."""
    states = state.index_select(1, piece.owners) if piece.owners is not None else state.expand(-1, piece.num_chunks, -1)
    return states.reshape(stream.groups * piece.num_chunks, -1, stream.state_width)
