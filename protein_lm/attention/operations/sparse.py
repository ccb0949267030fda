"""Sparse softmax attention by a pattern: local, local + global, strided, BigBird. O(L) time and memory.

Every sequence lies on a grid of its own, whether it has a row for itself, is padded or is packed with others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.checks import check_inputs
from protein_lm.attention.operations.blocks import BlockPlan, block_attention
from protein_lm.attention.operations.exact import KeyValueCache
from protein_lm.attention.operations.patterns import Pattern
from protein_lm.attention.operations.pieces import Chunks
from protein_lm.attention.operations.reorder import reorder
from protein_lm.attention.packing import Packing
from protein_lm.attention.reference import visible_keys


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tokens of all rows, one row after the other, lie on a grid, and what each sees there."""

    plan: BlockPlan
    source: Tensor | None
    """(N·C,) token in each place, any where a place is empty; None: places are tokens."""
    places: Tensor | None
    """(B·L,) place of each token."""
    filled: Tensor | None
    """(N·C, 1) whether a place holds a token."""
    sequences: Tensor
    """(B·L,) number of the sequence of each token."""
    global_tokens: list[tuple[Tensor, Tensor]]
    """For each number of a global token: the token (S,) of that number in each sequence, and which sequences (any,) have it;
    the others stand with their first token."""


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
    global_inputs: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax attention to the keys of a pattern.

    Args:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, any).
        pattern: which keys are seen.
        causal: whether keys after the query are hidden.
        valid_mask: (B, L) boolean, True for real tokens; padded keys are never seen. None: all are real.
        packing: the sequences of a packed row (B = 1), which do not see each other. None: each row is one sequence.
        global_inputs: query, key and value, of the same shapes, for what global tokens see; None: the ordinary ones.

    Returns:
        (B, H, L, width of value) in the type of `value`. Rows of padded queries are finite and carry no meaning.

    Raises:
        ValueError: as `checks.check_inputs`.
    """
    check_inputs(query, key, value, valid_mask, packing)
    layout = _layout(pattern, query.shape[0], query.shape[2], causal, valid_mask, packing, query.device)
    rows = _as_one_row(query), _as_one_row(key), _as_one_row(value)
    queries, keys, values = (reorder(row, layout.source, layout.places) for row in rows)
    output, _ = block_attention(queries, keys, values, layout.plan, query.shape[-1] ** -0.5)
    output = reorder(output, layout.places, layout.source, layout.filled)
    if pattern.num_global_tokens and not causal:
        of_globals = rows if global_inputs is None else tuple(_as_one_row(tensor) for tensor in global_inputs)
        mask = None if valid_mask is None else valid_mask.flatten()
        output = _with_global_rows(output, of_globals, layout, mask)
    return output.view(value.shape[1], value.shape[0], *value.shape[2:]).transpose(0, 1)


def sparse_attention_matrix(
    query: Tensor,
    key: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
    global_inputs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The matrix (B, H, L, L) of `sparse_attention`, formed densely: the twin. `global_inputs`: query and key."""
    length, device = query.shape[2], query.device
    seen = visible_keys(length, causal=False, valid_mask=valid_mask, device=device, packing=packing)
    starts = [0] if packing is None else packing.boundaries[:-1].tolist()
    lengths = [length] if packing is None else packing.lengths.tolist()
    real = _real_lengths(query.shape[0], length, valid_mask)
    allowed = []
    for row_length in real:
        inside = torch.zeros(length, length, dtype=torch.bool, device=device)
        for start, size in zip(starts, lengths, strict=True):
            size = min(size, row_length) if packing is None else size
            span = slice(start, start + size)
            inside[span, span] = pattern.visible(size, slice(0, size), causal=causal, device=device)
        allowed.append(inside)
    seen = seen & torch.stack(allowed)[:, None]
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    if global_inputs is not None and not causal:
        positions = torch.arange(length) if packing is None else torch.from_numpy(packing.positions)
        is_global = (positions < pattern.num_global_tokens).to(device)[:, None]
        scores = torch.where(is_global, (global_inputs[0] @ global_inputs[1].mT) * query.shape[-1] ** -0.5, scores)
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1).nan_to_num(0.0)


def sparse_matrix_rows(
    query: Tensor,
    key: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    global_inputs: tuple[Tensor, Tensor] | None = None,
) -> Callable[[slice], Tensor]:
    """Rows of the matrix of `sparse_attention` for one sequence without padding, see `AttentionOperation.matrix_rows`."""
    scale, length = query.shape[-1] ** -0.5, query.shape[2]

    def rows(span: slice) -> Tensor:
        scores = query[:, :, span] @ key.mT * scale
        if global_inputs is not None and not causal and span.start < pattern.num_global_tokens:
            of_globals = slice(span.start, min(span.stop, pattern.num_global_tokens))
            num_globals = of_globals.stop - of_globals.start
            scores[:, :, :num_globals] = global_inputs[0][:, :, of_globals] @ global_inputs[1].mT * scale
        seen = pattern.visible(length, span, causal=causal, device=query.device)
        weights = torch.softmax(scores.masked_fill_(~seen, -torch.inf), dim=-1)
        return weights[..., : span.stop] if causal else weights

    return rows


def extend_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, cache: KeyValueCache
) -> Tensor:
    """Causal attention (B, H, S, E) of S tokens that follow those in `cache`, to which they are added."""
    first = cache.length
    keys, values = cache.append(key, value)
    seen = pattern.visible(cache.length, slice(first, cache.length), causal=True, device=query.device)
    return scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=seen).to(value.dtype)


def _as_one_row(tensor: Tensor) -> Tensor:
    """(B, H, L, ·) as (H, B·L, ·)."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1, tensor.shape[-1])


def _layout(
    pattern: Pattern,
    batch: int,
    length: int,
    causal: bool,
    valid_mask: Tensor | None,
    packing: Packing | None,
    device: torch.device,
) -> Layout:
    if packing is not None:
        return packing.plan(
            (pattern, causal, device), lambda: _build(pattern, packing.boundaries, packing.lengths, causal, device)
        )
    if valid_mask is None:
        return _unpadded_layout(pattern, batch, length, causal, device)
    boundaries = np.arange(batch + 1) * length
    # Only random blocks depend on where a sequence ends; asking for that waits for the device.
    drawn = pattern.num_random_blocks and not causal
    real = np.asarray(_real_lengths(batch, length, valid_mask if drawn else None))
    return _build(pattern, boundaries, real, causal, device, valid_mask.flatten())


@lru_cache(maxsize=16)
def _unpadded_layout(pattern: Pattern, batch: int, length: int, causal: bool, device: torch.device) -> Layout:
    """Made once for all layers and passes over rows of the same length."""
    return _build(pattern, np.arange(batch + 1) * length, np.full(batch, length), causal, device)


def _real_lengths(batch: int, length: int, valid_mask: Tensor | None) -> list[int]:
    """Tokens of each row up to its last real one."""
    if valid_mask is None:
        return [length] * batch
    numbers = torch.arange(1, length + 1, device=valid_mask.device)
    return (valid_mask * numbers).amax(1).tolist()


def _build(
    pattern: Pattern,
    boundaries: NDArray[np.int64],
    real_lengths: NDArray[np.int64],
    causal: bool,
    device: torch.device,
    valid: Tensor | None = None,
) -> Layout:
    """The layout of sequences between `boundaries` (S + 1,), of which the first `real_lengths` (S,) tokens count."""

    def to(array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(device)

    def per_place(flags: NDArray) -> Tensor:
        return to(flags).repeat_interleave(pattern.block, dim=1)[:, None]

    chunks = Chunks(boundaries, pattern.block)
    piece = chunks.piece(0, chunks.starts.size, device)
    firsts = np.flatnonzero(np.diff(chunks.sequences, prepend=-1))[chunks.sequences]
    own = np.arange(chunks.starts.size) - firsts  # number of each block within its sequence
    num_blocks = -(-real_lengths // pattern.block)[chunks.sequences]
    numbers, picked = _key_blocks(pattern, own, num_blocks, causal=causal)
    absent = numbers < 0
    place = torch.arange(pattern.block, device=device)
    key_starts = np.where(absent, 0, numbers) * pattern.block
    query_positions = (to(own * pattern.block)[:, None] + place)[:, :, None]
    key_positions = (to(key_starts)[:, :, None] + place).flatten(1)[:, None]
    seen = pattern.near(query_positions, key_positions, causal=causal)
    seen |= (key_positions < pattern.num_global_tokens) | per_place(picked)
    if causal:
        seen &= key_positions <= query_positions
    key_blocks = to(np.where(absent, 0, numbers + firsts[:, None]))
    ends = to(real_lengths[chunks.sequences])[:, None, None]
    seen &= ~per_place(absent) & (key_positions < ends)
    if valid is not None:
        tokens = valid if piece.source is None else valid[piece.source]
        seen &= tokens.view(-1, pattern.block)[key_blocks].flatten(1)[:, None]
    hidden = ~seen[None]
    plan = BlockPlan(pattern.block, key_blocks, lambda span: hidden[:, span])
    lengths = np.diff(boundaries)
    sequences = np.repeat(np.arange(lengths.size), lengths)
    global_tokens = [
        (to(boundaries[:-1] + number * (lengths > number)), to(np.flatnonzero(lengths > number)))
        for number in range(pattern.num_global_tokens)
    ]
    return Layout(plan, piece.source, piece.places, piece.filled, to(sequences), global_tokens)


def _key_blocks(
    pattern: Pattern, own: NDArray[np.int64], num_blocks: NDArray[np.int64], *, causal: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Blocks of its sequence (N, K) that each block sees, -1 where there are fewer; and whether it sees them whole."""
    before, after = (min(reach, int(num_blocks.max())) for reach in pattern.reach(causal=causal))
    near = own[:, None] + np.arange(-before, after + 1)
    of_globals = np.tile(np.arange(-(-pattern.num_global_tokens // pattern.block)), (own.size, 1))
    some = np.concatenate((near, of_globals), axis=1)
    some = np.where((some >= 0) & (some < num_blocks[:, None]), some, -1)
    if causal:
        some = np.where(some <= own[:, None], some, -1)
    whole = pattern.picks(own, num_blocks, causal=causal)
    numbers = np.concatenate((some, whole), axis=1)
    is_whole = np.concatenate((np.zeros_like(some, dtype=bool), np.ones_like(whole, dtype=bool)), axis=1)
    # A block once, seen whole if any rule says so: sorted, that rule comes first, and what follows it is dropped.
    order = np.argsort(2 * numbers + ~is_whole, axis=1, kind="stable")
    numbers = np.take_along_axis(numbers, order, axis=1)
    is_whole = np.take_along_axis(is_whole, order, axis=1)
    repeated = np.zeros_like(is_whole)
    repeated[:, 1:] = numbers[:, 1:] == numbers[:, :-1]
    numbers = np.where(repeated, -1, numbers)
    order = np.argsort(numbers < 0, axis=1, kind="stable")[:, : max(1, int((numbers >= 0).sum(1).max()))]
    numbers = np.take_along_axis(numbers, order, axis=1)
    is_whole = np.take_along_axis(is_whole, order, axis=1)
    return numbers, np.logical_and(is_whole, numbers >= 0)


def _with_global_rows(output: Tensor, inputs: tuple[Tensor, ...], layout: Layout, valid: Tensor | None) -> Tensor:
    """`output` (H, B·L, ·) with the rows of global tokens, which see all of their sequence; `inputs`: query, key, value."""
    query, key, value = inputs
    dtype = torch.promote_types(query.dtype, torch.float32)
    sequences = layout.sequences
    keys, values = key.to(dtype), value.to(dtype)
    for tokens, having in layout.global_tokens:
        queries = query[:, tokens].to(dtype) * query.shape[-1] ** -0.5
        scores = (keys * queries[:, sequences]).sum(-1)
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
        largest = scores.detach().new_full((scores.shape[0], tokens.numel()), -torch.inf)
        largest = largest.scatter_reduce(1, sequences.expand_as(scores), scores.detach(), "amax")
        weights = (scores - largest[:, sequences]).exp()
        sums = torch.zeros_like(largest).index_add(1, sequences, weights)
        rows = values.new_zeros(values.shape[0], tokens.numel(), values.shape[2])
        rows = rows.index_add(1, sequences, weights[..., None] * values) / sums[..., None]
        output = output.index_copy(1, tokens[having], rows[:, having].to(output.dtype))
    return output
