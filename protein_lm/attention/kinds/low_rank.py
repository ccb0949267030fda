"""Low-rank softmax attention, bidirectional only: the kinds linformer and nystrom. O(L) time.

Both look at a whole sequence at once. Padded rows and packed sequences are therefore computed one after the other.

Sources: Wang et al. 2020 (Linformer, arXiv 2006.04768); Xiong et al. 2021 (Nyströmformer, arXiv 2102.03902).
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.kinds.interface import LARGEST, AttentionOperation, AttentionOptions, LayerShape
from protein_lm.attention.operations.linear_stream import without_autocast
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import WHOLE, Rows

NUM_ITERATIONS = 6
"""Iterations of the pseudo-inverse, as in the paper."""

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
    """Return softmax(Q (P K)ᵀ / √E) R V with P, R (K, L); shapes as in `exact_attention`.

    The weights of tokens may be negative and need not sum to 1.

    Raises:
        ValueError: as `input_checks.check_inputs`, or a sequence longer than the projections.
    """
    length = query.shape[2] if packing is None else int(packing.lengths.max())
    if length > (longest := projections.of_keys.shape[1]):
        raise ValueError(f"{length:,} tokens; these projections are for {longest:,}")

    def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        of_keys, of_values = projections.rows(positions, k.dtype)
        return _softmax(q, of_keys @ k) @ (of_values @ v)

    return _by_sequence(attend, query, key, value, valid_mask, packing)


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


def _through_landmarks(query: Tensor, key: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries to landmarks (B, H, L, K), the inverse between landmarks (B, H, K, K), landmarks to keys (B, H, K, L)."""
    means = _segment_means(query.shape[2], num_landmarks, query)
    query_marks, key_marks = means @ query, means @ key
    inverse = pseudo_inverse(_softmax(query_marks, key_marks))
    return _softmax(query, key_marks), inverse, _softmax(query_marks, key)


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
    """Attend to each sequence on its own, in float32 or better; the output has the type of the values."""
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
    """Yield the output (1, H, L, any) of each row: that of its real tokens, and zeros at padding."""
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


class LowRankOperation(AttentionOperation):
    """An operation whose matrix is a product of two factors with few columns and rows."""

    weights_are_positive = False

    def factors(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, L, K) and (K, L), or (B, H, K, L), whose product is the matrix of one sequence without padding."""
        raise NotImplementedError

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        # The operation is linear in the values: its matrix is the output for one-hot values.
        length = query.shape[2]
        one_hot = torch.eye(length, dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
        return self(query, key, one_hot, rows)

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        left, right = self.factors(query, key)
        return lambda span: left[:, :, span] @ right


class LinformerOperation(LowRankOperation):
    """Softmax attention to learned mixtures of keys."""

    def __init__(self, projections: LengthProjections) -> None:
        super().__init__(causal=False)
        self.projections = projections

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        return linformer_attention(query, key, value, self.projections, **rows.of_one_process())

    def factors(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        of_keys, of_values = self.projections.rows(torch.arange(query.shape[2], device=query.device), key.dtype)
        return _softmax(query, of_keys @ key), of_values

    def initialize(self, generator: torch.Generator) -> None:
        self.projections.initialize(generator)


class NystromOperation(LowRankOperation):
    """Softmax attention through landmarks."""

    def __init__(self, num_landmarks: int) -> None:
        super().__init__(causal=False)
        self.num_landmarks = num_landmarks

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        return nystrom_attention(query, key, value, self.num_landmarks, **rows.of_one_process())

    def factors(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if query.shape[2] <= self.num_landmarks:
            return _softmax(query, key), torch.eye(query.shape[2], dtype=query.dtype, device=query.device)
        of_queries, inverse, of_keys = _through_landmarks(query, key, self.num_landmarks)
        return of_queries, inverse @ of_keys


class LowRankOptions(AttentionOptions):
    """Options of both kinds."""

    has_causal_form: ClassVar[bool] = False

    num_landmarks: int = Field(default=64, ge=1, le=LARGEST)
    """K: rank of the projections of linformer, landmarks of nystrom."""


class LinformerOptions(LowRankOptions):
    """Options of linformer attention; its weights also depend on the length of the longest sequence."""

    def build(self, layer: LayerShape) -> LinformerOperation:
        return LinformerOperation(LengthProjections(self.num_landmarks, layer.max_length))


class NystromOptions(LowRankOptions):
    """Options of nystrom attention."""

    def build(self, layer: LayerShape) -> NystromOperation:
        return NystromOperation(self.num_landmarks)
