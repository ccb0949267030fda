"""Low-rank softmax attention, bidirectional only: Linformer and Nyström. O(L) time.

Both look at a whole sequence at once, so rows with padding and packed sequences are attended to one after the other.

Sources: Wang et al. 2020 (Linformer, arXiv 2006.04768); Xiong et al. 2021 (Nyströmformer, arXiv 2102.03902).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from protein_lm.attention.checks import check_inputs
from protein_lm.attention.operations.stream import without_autocast
from protein_lm.attention.packing import Packing

NUM_ITERATIONS = 6
"""Of the pseudo-inverse, as in the paper."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries, keys (B, H, n, E), values (B, H, n, any) and positions (n,) of real tokens -> output (B, H, n, any)."""


class LengthProjections(nn.Module):
    """Linformer's projections of keys and of values along the length, (K, longest) each, shared by the heads of a layer."""

    def __init__(self, rank: int, longest: int) -> None:
        super().__init__()
        self.of_keys = nn.Parameter(torch.empty(rank, longest))
        self.of_values = nn.Parameter(torch.empty(rank, longest))
        self.initialize(torch.Generator().manual_seed(0))

    def initialize(self, generator: torch.Generator) -> None:
        """Normal with variance 1 / K, as in the paper's theorem."""
        for projection in self.parameters():
            nn.init.normal_(projection, std=projection.shape[0] ** -0.5, generator=generator)

    def rows(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Columns of both for the positions (n,) of a sequence."""
        return self.of_keys[:, positions].to(dtype), self.of_values[:, positions].to(dtype)


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projections: LengthProjections,
    *,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """softmax(Q (P K)ᵀ / √E) R V with P, R (K, L); shapes as in `exact_attention`.

    The weights that this gives to tokens may be negative and need not sum to 1.

    Raises:
        ValueError: as `checks.check_inputs`, or a sequence longer than the projections.
    """
    length = query.shape[2] if packing is None else int(packing.lengths.max())
    if length > (longest := projections.of_keys.shape[1]):
        raise ValueError(f"{length:,} tokens; these projections are for {longest:,}")

    def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        of_keys, of_values = projections.rows(positions, k.dtype)
        return _softmax(q, of_keys @ k) @ (of_values @ v)

    return _by_sequence(attend, query, key, value, valid_mask, packing)


def linformer_factors(query: Tensor, key: Tensor, projections: LengthProjections) -> tuple[Tensor, Tensor]:
    """(B, H, L, K) and (K, L), whose product is the matrix of `linformer_attention` for one sequence without padding."""
    of_keys, of_values = projections.rows(torch.arange(query.shape[2], device=query.device), key.dtype)
    return _softmax(query, of_keys @ key), of_values


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_landmarks: int,
    *,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Softmax attention through landmarks: means of queries and keys over `num_landmarks` even parts of the sequence.

    A sequence of no more tokens than landmarks gets exact attention. Shapes as in `exact_attention`.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        if positions.numel() <= num_landmarks:
            return _softmax(q, k) @ v
        of_queries, inverse, of_keys = _through_landmarks(q, k, num_landmarks)
        return of_queries @ (inverse @ (of_keys @ v))

    return _by_sequence(attend, query, key, value, valid_mask, packing)


def nystrom_factors(query: Tensor, key: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor]:
    """(B, H, L, K) and (B, H, K, L), whose product is the matrix of `nystrom_attention` for one sequence without padding."""
    if query.shape[2] <= num_landmarks:
        return _softmax(query, key), torch.eye(query.shape[2], dtype=query.dtype, device=query.device)
    of_queries, inverse, of_keys = _through_landmarks(query, key, num_landmarks)
    return of_queries, inverse @ of_keys


def _through_landmarks(query: Tensor, key: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries to landmarks (B, H, L, K), the inverse between landmarks (B, H, K, K), landmarks to keys (B, H, K, L)."""
    means = _segment_means(query.shape[2], num_landmarks, query)
    query_marks, key_marks = means @ query, means @ key
    inverse = pseudo_inverse(_softmax(query_marks, key_marks))
    return _softmax(query, key_marks), inverse, _softmax(query_marks, key)


def matrix_of(attend: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The matrix (B, H, L, L) of an operation that is linear in the values: what it makes of one-hot values."""
    length = like.shape[2]
    return attend(torch.eye(length, dtype=like.dtype, device=like.device).expand(*like.shape[:2], -1, -1))


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Moore-Penrose inverse of (..., K, K) by a fixed number of iterations of third order (Razavi et al. 2014)."""
    norms = matrix.abs().sum(-1).amax((-1,), keepdim=True) * matrix.abs().sum(-2).amax((-1,), keepdim=True)
    inverse = matrix.mT / norms[..., None]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(NUM_ITERATIONS):
        product = matrix @ inverse
        inverse = inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product))) / 4
    return inverse


def _by_sequence(
    attend: Attend, query: Tensor, key: Tensor, value: Tensor, valid_mask: Tensor | None, packing: Packing | None
) -> Tensor:
    check_inputs(query, key, value, valid_mask, packing)
    dtype = torch.promote_types(query.dtype, torch.float32)
    rows = query.to(dtype), key.to(dtype), value.to(dtype)
    with without_autocast(query.device):
        if packing is None and valid_mask is None:
            return attend(*rows, torch.arange(query.shape[2], device=query.device)).to(value.dtype)
        if packing is not None:
            lengths = packing.lengths.tolist()
            parts = zip(*(tensor.split(lengths, 2) for tensor in rows), strict=True)
            outputs = [attend(q, k, v, torch.arange(q.shape[2], device=q.device)) for q, k, v in parts]
            return torch.cat(outputs, dim=2).to(value.dtype)
        assert valid_mask is not None
        return torch.cat(list(_padded_rows(attend, rows, valid_mask))).to(value.dtype)


def _padded_rows(attend: Attend, rows: tuple[Tensor, Tensor, Tensor], valid_mask: Tensor) -> Iterator[Tensor]:
    for number, valid in enumerate(valid_mask):
        positions = valid.nonzero()[:, 0]
        query, key, value = (tensor[number : number + 1].index_select(2, positions) for tensor in rows)
        empty = torch.zeros_like(rows[2][number : number + 1])
        yield empty.index_copy(2, positions, attend(query, key, value, positions))


def _softmax(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1)


def _segment_means(length: int, count: int, like: Tensor) -> Tensor:
    """(count, length): each row the mean over one of `count` even parts of the sequence."""
    part = torch.arange(length, device=like.device) * count // length
    members = (part == torch.arange(count, device=like.device)[:, None]).to(like.dtype)
    return members / members.sum(1, keepdim=True)
