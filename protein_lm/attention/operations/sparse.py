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

from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.operations.block_attention import BlockPlan, block_attention
from protein_lm.attention.operations.exact import KeyValueCache
from protein_lm.attention.operations.linear_pieces import Chunks
from protein_lm.attention.operations.reorder import reorder
from protein_lm.attention.operations.sparse_patterns import Pattern
from protein_lm.attention.packing import Packing
from protein_lm.attention.reference import visible_keys


@dataclass(frozen=True, slots=True)
class Layout:
    """The grid of N blocks of C slots on which the tokens of all rows lie, one row after the other."""

    plan: BlockPlan
    """The keys that each token sees on the grid."""
    source: Tensor | None
    """(N·C,) token in each slot, any where a slot is empty; None: slots are tokens."""
    slots: Tensor | None
    """(B·L,) slot of each token."""
    filled: Tensor | None
    """(N·C, 1) whether a slot holds a token."""
    sequences: Tensor
    """(B·L,) number of each token's sequence."""
    global_tokens: list[tuple[Tensor, Tensor]]
    """Two tensors for the first, second … global token: that token (S,) of each sequence, and the sequences (any,) that are
    long enough to have it. Shorter ones name their first token instead."""


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

    `global_inputs` are query, key and value of global tokens, of the same shapes; None: the ordinary ones. The other
    arguments, the result and the errors are those of `dispatch.exact_attention`.
    """
    check_inputs(query, key, value, valid_mask, packing)
    layout = _layout(pattern, query.shape[0], query.shape[2], causal, valid_mask, packing, query.device)
    # Tokens of all rows behind each other (H, B·L, ·), then on the grid (H, N·C, ·), and back.
    rows = _as_one_row(query), _as_one_row(key), _as_one_row(value)
    queries, keys, values = (reorder(row, layout.source, layout.slots) for row in rows)
    output, _ = block_attention(queries, keys, values, layout.plan, query.shape[-1] ** -0.5)
    output = reorder(output, layout.slots, layout.source, layout.filled)
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
    """Form the matrix (B, H, L, L) of `sparse_attention` densely: the twin. `global_inputs` are query and key."""
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
    """Form rows of the matrix of `sparse_attention` for one sequence; see `AttentionOperation.matrix_rows`."""
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
    """Attend causally from S tokens (B, H, S, E) that follow those in `cache`, and add them to it."""
    first = cache.length
    keys, values = cache.append(key, value)
    seen = pattern.visible(cache.length, slice(first, cache.length), causal=True, device=query.device)
    return scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=seen).to(value.dtype)


def _as_one_row(tensor: Tensor) -> Tensor:
    """Put the rows of (B, H, L, ·) behind each other: (H, B·L, ·)."""
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
    """Lay rows of one length out, once for all layers and passes."""
    return _build(pattern, np.arange(batch + 1) * length, np.full(batch, length), causal, device)


def _real_lengths(batch: int, length: int, valid_mask: Tensor | None) -> list[int]:
    """Count the tokens of each row up to its last real one."""
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
    """Lay sequences out on a grid.

    Args:
        pattern: the keys that are seen.
        boundaries: (S + 1,) tokens between which the sequences lie.
        real_lengths: (S,) tokens of each sequence that count.
        causal: whether keys after the query are hidden.
        device: where the layout is used.
        valid: (B·L,) whether a token is real. None: all are.
    """

    def to(array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(device)

    def per_slot(flags: NDArray) -> Tensor:  # (N, K) -> (N, 1, K·C)
        return to(flags).repeat_interleave(pattern.block, dim=1)[:, None]

    chunks = Chunks(boundaries, pattern.block)
    piece = chunks.piece(0, chunks.starts.size, device)
    # Of each block (N,): the first block of its sequence, its number within the sequence, and the blocks of the sequence.
    firsts = np.flatnonzero(np.diff(chunks.sequences, prepend=-1))[chunks.sequences]
    own = np.arange(chunks.starts.size) - firsts
    num_blocks = -(-real_lengths // pattern.block)[chunks.sequences]
    # Blocks of keys (N, K), numbered within the sequence, then on the grid.
    numbers, picked = _key_blocks(pattern, own, num_blocks, causal=causal)
    absent = numbers < 0
    key_blocks = to(np.where(absent, 0, numbers + firsts[:, None]))
    # Positions of queries (N, C, 1) and of keys (N, 1, K·C) within their sequence.
    slot = torch.arange(pattern.block, device=device)
    key_starts = np.where(absent, 0, numbers) * pattern.block
    query_positions = (to(own * pattern.block)[:, None] + slot)[:, :, None]
    key_positions = (to(key_starts)[:, :, None] + slot).flatten(1)[:, None]
    # Which query sees which key (N, C, K·C): by the pattern, but no later token, absent block, empty slot or padding.
    seen = pattern.near(query_positions, key_positions, causal=causal)
    seen |= (key_positions < pattern.num_global_tokens) | per_slot(picked)
    if causal:
        seen &= key_positions <= query_positions
    ends = to(real_lengths[chunks.sequences])[:, None, None]
    seen &= ~per_slot(absent) & (key_positions < ends)
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
    return Layout(plan, piece.source, piece.slots, piece.filled, to(sequences), global_tokens)


def _key_blocks(
    pattern: Pattern, own: NDArray[np.int64], num_blocks: NDArray[np.int64], *, causal: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """List the blocks that each of N blocks sees, and tell whether it sees them whole: (N, K) each.

    Blocks are numbered within their sequence, which has `num_blocks` (N,); `own` (N,) is each block's own number. A list with
    fewer than K blocks ends with -1.
    """
    # Blocks of which the window or global tokens may see a part.
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
    # Each block once. Sorted by number and, within a number, whole first: later copies of a number are dropped.
    order = np.argsort(2 * numbers + ~is_whole, axis=1, kind="stable")
    numbers = np.take_along_axis(numbers, order, axis=1)
    is_whole = np.take_along_axis(is_whole, order, axis=1)
    repeated = np.zeros_like(is_whole)
    repeated[:, 1:] = numbers[:, 1:] == numbers[:, :-1]
    numbers = np.where(repeated, -1, numbers)
    # Dropped ones to the end of each list, and lists no longer than the longest.
    order = np.argsort(numbers < 0, axis=1, kind="stable")[:, : max(1, int((numbers >= 0).sum(1).max()))]
    numbers = np.take_along_axis(numbers, order, axis=1)
    is_whole = np.take_along_axis(is_whole, order, axis=1)
    return numbers, np.logical_and(is_whole, numbers >= 0)


def _with_global_rows(output: Tensor, inputs: tuple[Tensor, ...], layout: Layout, valid: Tensor | None) -> Tensor:
    """Replace the rows of global tokens, which see all of their sequence, in `output` (H, B·L, ·).

    `inputs` are query, key and value (H, B·L, ·); S sequences, T = B·L tokens.
    """
    query, key, value = inputs
    dtype = torch.promote_types(query.dtype, torch.float32)
    sequences = layout.sequences
    keys, values = key.to(dtype), value.to(dtype)
    for tokens, having in layout.global_tokens:
        # One query per sequence (H, S, E); its scores for the keys of its own sequence (H, T).
        queries = query[:, tokens].to(dtype) * query.shape[-1] ** -0.5
        scores = (keys * queries[:, sequences]).sum(-1)
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
        # Softmax within each sequence: largest scores and sums (H, S), then rows (H, S, width of value).
        largest = scores.detach().new_full((scores.shape[0], tokens.numel()), -torch.inf)
        largest = largest.scatter_reduce(1, sequences.expand_as(scores), scores.detach(), "amax")
        weights = (scores - largest[:, sequences]).exp()
        sums = torch.zeros_like(largest).index_add(1, sequences, weights)
        rows = values.new_zeros(values.shape[0], tokens.numel(), values.shape[2])
        rows = rows.index_add(1, sequences, weights[..., None] * values) / sums[..., None]
        output = output.index_copy(1, tokens[having], rows[:, having].to(output.dtype))
    return output
