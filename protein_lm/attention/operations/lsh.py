"""Attention among tokens that a hash puts into the same bucket, as in Reformer; O(L log L) time.

Queries and keys are one projection; a key is its query normalized. A random rotation R sorts each token into the bucket
argmax [xR; -xR]. A token sees the `window` tokens nearest to it *within its bucket*: bidirectional half of them on each side,
causal those before it. It sees itself only if it sees no other. Several rounds, each with its own rotation, are combined by
their sums of exponentials, so a key counts as often as it is seen.

Reformer itself cuts the tokens, sorted by bucket, into chunks. There the number of later tokens decides who shares a chunk,
so the future leaks into causal outputs, and padding into all. A window by rank in the bucket depends on neither.

Source: Kitaev et al. 2020 (arXiv 2001.04451), section 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.operations.block_attention import HIDDEN, SELF_SCORE, BlockPlan, block_attention
from protein_lm.attention.operations.exact import KeyValueCache
from protein_lm.attention.operations.linear_stream import without_autocast
from protein_lm.attention.operations.reorder import reorder
from protein_lm.attention.packing import Packing
from protein_lm.attention.reference import visible_keys

MOST_BUCKETS = 2**32
"""More buckets than a hash ever has; numbers from here on tell sequences and padding apart."""


class Hash(nn.Module):
    """Random rotations (H, E, rounds, buckets / 2) of the heads of a layer; only `redraw` changes them."""

    rotations: Tensor

    def __init__(self, num_heads: int, head_width: int, *, num_buckets: int, num_rounds: int) -> None:
        """Raise ValueError for an odd number of buckets: they come in pairs."""
        super().__init__()
        if num_buckets < 2 or num_buckets % 2 or num_rounds < 1:
            raise ValueError(
                f"{num_buckets} buckets in {num_rounds} rounds: buckets come in pairs, so their number must be even, and "
                "there must be a round"
            )
        self.num_buckets = num_buckets
        self.register_buffer("rotations", torch.empty(num_heads, head_width, num_rounds, num_buckets // 2))
        self.redraw(torch.Generator().manual_seed(0))

    def redraw(self, generator: torch.Generator) -> None:
        """Draw new rotations in place from `generator` (on the CPU, so that every device gets the same draw)."""
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, query: Tensor) -> Tensor:
        """Hash queries (B, H, L, E) into buckets (B, H, rounds, L)."""
        if query.shape[-1] != self.rotations.shape[1]:
            raise ValueError(f"queries are {query.shape[-1]} wide; this hash is for {self.rotations.shape[1]}")
        rows = query.to(torch.promote_types(query.dtype, torch.float32))
        with without_autocast(query.device):
            turned = torch.einsum("bhle,hern->bhrln", rows, self.rotations.to(rows.dtype))
        return torch.cat((turned, -turned), dim=-1).argmax(-1)


def keys_of_queries(query: Tensor) -> Tensor:
    """Turn queries (..., E) into keys of length 1; a query of zeros gives a key of zeros."""
    rows = query.to(torch.promote_types(query.dtype, torch.float32))
    return rows * torch.rsqrt(rows.square().sum(-1, keepdim=True) + 1e-12)


def lsh_attention(
    query: Tensor,
    value: Tensor,
    buckets: Tensor,
    *,
    window: int,
    block: int,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Attention among tokens of the same bucket, with scores q·k.

    Keys are made from the queries (B, H, L, E); `buckets` (B, H, rounds, L) come from `Hash`. A query sees `window` tokens of
    its bucket. Tokens are worked on in blocks of `block`, on which only the time depends. The other arguments, the result and
    the errors are those of `dispatch.exact_attention`.
    """
    check_inputs(query, query, value, valid_mask, packing)
    groups = _groups(buckets, valid_mask, packing)
    queries, keys, values = (rows.flatten(0, 1) for rows in (query, keys_of_queries(query).to(query.dtype), value))
    outputs, sums = [], []
    for number in range(buckets.shape[2]):  # one round: attention on a grid of its own, (B·H, N·C, ·)
        order = _Order(groups[:, :, number].flatten(0, 1), window, block, causal)
        on_grid = order.sort(queries), order.sort(keys), order.sort(values)
        output, logsumexp = block_attention(*on_grid, order.plan, 1.0)
        outputs.append(order.restore(output))
        sums.append(order.restore(logsumexp[..., None]))
    if len(outputs) == 1:
        return outputs[0].view(value.shape)
    # Share of each round (rounds, B·H, L, 1), by its sum of exponentials.
    shares = torch.softmax(torch.stack(sums), dim=0)
    return (torch.stack(outputs) * shares).sum(0).view(value.shape).to(value.dtype)


def lsh_attention_matrix(
    query: Tensor,
    buckets: Tensor,
    *,
    window: int,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Form the matrix (B, H, L, L) of `lsh_attention` densely: the twin."""
    seen = visible_keys(query.shape[2], causal=causal, valid_mask=valid_mask, device=query.device, packing=packing)
    groups = _groups(buckets, valid_mask, packing)
    together = groups[..., :, None] == groups[..., None, :]
    counts = _in_window(together, window, causal=causal, first=0)
    return _dense_weights(query, keys_of_queries(query), counts * seen, first=0)


def lsh_matrix_rows(query: Tensor, buckets: Tensor, *, window: int, causal: bool) -> Callable[[slice], Tensor]:
    """Form rows of the matrix of `lsh_attention` for one sequence; see `AttentionOperation.matrix_rows`."""
    keys = keys_of_queries(query)

    def rows(span: slice) -> Tensor:
        seen = slice(0, span.stop if causal else query.shape[2])
        together = buckets[..., span, None] == buckets[..., None, seen]
        counts = _in_window(together, window, causal=causal, first=span.start)
        return _dense_weights(query[:, :, span], keys[:, :, seen], counts, first=span.start)

    return rows


class LshCache:
    """Keys, values and buckets of all tokens so far."""

    def __init__(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> None:
        self.rows = KeyValueCache(batch_size, num_heads, head_width, device)
        self.buckets: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows of these numbers (K,), in this order."""
        self.rows.keep(rows)
        self.buckets = None if self.buckets is None else self.buckets[rows.to(self.buckets.device)]


def extend_lsh_attention(query: Tensor, value: Tensor, hashing: Hash, window: int, cache: LshCache) -> Tensor:
    """Attend causally from S tokens (B, H, S, E) that follow those in `cache`, and add them to it."""
    first = cache.rows.length
    keys, values = cache.rows.append(keys_of_queries(query), value)
    new = hashing(query)
    buckets = new if cache.buckets is None else torch.cat((cache.buckets, new), dim=-1)
    cache.buckets = buckets
    together = new[..., :, None] == buckets[..., None, :]
    counts = _in_window(together, window, causal=True, first=first)
    weights = _dense_weights(query.to(keys.dtype), keys, counts, first=first)
    return (weights @ values).to(value.dtype)


def _groups(buckets: Tensor, valid_mask: Tensor | None, packing: Packing | None) -> Tensor:
    """Number the groups of tokens that may see each other (B, H, rounds, L): same bucket, same sequence, real or not."""
    if packing is not None:
        return buckets + MOST_BUCKETS * torch.from_numpy(packing.sequences).to(buckets.device)
    if valid_mask is not None:
        return buckets.masked_fill(~valid_mask[:, None, None, :], MOST_BUCKETS)
    return buckets


def _in_window(together: Tensor, window: int, *, causal: bool, first: int) -> Tensor:
    """Count the rounds in which query `first` + s sees key t: (B, H, S, T).

    `together` (B, H, rounds, S, T) tells which query and key share a bucket.
    """
    # Rank of each key in the query's bucket, and how many keys of the bucket lie between query and key.
    rank = together.cumsum(-1)
    own = torch.arange(first, first + together.shape[-2], device=together.device)
    distance = rank.gather(-1, own[:, None].expand(*together.shape[:-1], 1)) - rank
    before = own[:, None] >= torch.arange(together.shape[-1], device=together.device)
    near = before & (distance < window) if causal else distance.abs() <= window // 2
    return (together & near).sum(2)


def _dense_weights(query: Tensor, key: Tensor, counts: Tensor, *, first: int) -> Tensor:
    """Form weights (B, H, S, T) of keys that count `counts` times; queries are the tokens from number `first` on."""
    scores = query @ key.to(query.dtype).mT
    own = torch.arange(query.shape[2], device=query.device)
    is_self = own[:, None] + first == torch.arange(key.shape[2], device=query.device)
    scores = scores.masked_fill(is_self, SELF_SCORE) + counts.clamp_min(1).to(scores.dtype).log()
    return torch.softmax(scores.masked_fill(counts == 0, HIDDEN), dim=-1) * (counts > 0)


class _Order:
    """One round: tokens sorted by group, stably, on a grid of N blocks of C slots.

    A window on this grid is a window by rank in the bucket. G = B·H groups of heads and rows.
    """

    def __init__(self, groups: Tensor, window: int, block: int, causal: bool) -> None:
        num_rows, length = groups.shape
        num_blocks = -(-length // block)
        spare = num_blocks * block - length
        sorted_groups, order = torch.sort(groups, dim=1, stable=True)
        # Slot of each token (G, L), and token of each slot (G, N·C); the last slots are empty.
        self._slots = torch.empty_like(order)
        self._slots.scatter_(1, order, torch.arange(length, device=order.device).expand(num_rows, -1))
        self._source = torch.nn.functional.pad(order, (0, spare))
        self._filled = torch.arange(num_blocks * block, device=order.device)[:, None] < length
        # Labels (G, N, C): groups numbered anew, half as wide to compare.
        begins = torch.nn.functional.pad(sorted_groups.diff(dim=1) != 0, (1, 0))
        labels = begins.cumsum(1, dtype=torch.int32)
        self._labels = torch.nn.functional.pad(labels, (0, spare), value=-1).view(num_rows, num_blocks, block)
        # The K blocks of keys (N, K) that a window of `tokens` reaches, from the blocks before to those after.
        tokens = window - 1 if causal else window // 2
        before = -(-tokens // block)
        offsets = torch.arange(-before, (0 if causal else before) + 1, device=order.device)
        numbers = torch.arange(num_blocks, device=order.device)[:, None] + offsets
        absent = (numbers < 0) | (numbers >= num_blocks)
        key_blocks = numbers.masked_fill(absent, 0)
        # Distance of slot and key (C, K·C), the same for all blocks.
        slot = torch.arange(block, device=order.device)
        distance = slot[:, None] - (offsets[:, None] * block + slot).flatten()
        near = (distance >= 0) & (distance < window) if causal else distance.abs() <= window // 2
        present = (~absent).repeat_interleave(block, dim=1)[:, None]
        self._far = ~(near & present)
        """(N, C, K·C) where a key is out of sight, whatever its group."""
        self.plan = BlockPlan(block, key_blocks, self._hidden, avoid_self=True)

    def sort(self, rows: Tensor) -> Tensor:
        """Sort tokens (G, L, ·) into slots (G, N·C, ·)."""
        return reorder(rows, self._source, self._slots)

    def restore(self, rows: Tensor) -> Tensor:
        """Take slots (G, N·C, ·) back to tokens (G, L, ·)."""
        return reorder(rows, self._slots, self._source, self._filled)

    def _hidden(self, span: slice) -> Tensor:
        """Tell which keys a span of blocks does not see: those of another group, or far ones, (G, blocks, C, K·C)."""
        queries = self._labels[:, span]
        keys = self._labels[:, self.plan.key_blocks[span]].flatten(2)
        return (queries[..., None] != keys[:, :, None]).logical_or_(self._far[span])
