"""The tensors of one streamed call of linear attention, piece by piece.

Rows of a piece are gathered, their features formed, results written back. G = B·H groups; a piece has N chunks of C slots,
S = N·C; X = width of values + alignment.

Everything is float32 or better, but the operands of the large products are rounded to the product type: bfloat16 for bfloat16
input or under autocast. Normalizers and running states are summed in float32. Features are formed in float32, or in bfloat16
by maps that lose nothing by it (`FeatureMap.takes_bfloat16`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.operations.linear_pieces import Piece

ALIGNMENT = {torch.bfloat16: 16}
"""Columns behind the values, by product type: a column of ones, then zeros that keep rows aligned for vector units."""
DEFAULT_ALIGNMENT = 8


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type that autocast gives matrix products of a tensor; where it is off, the tensor's own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def product_dtype(query: Tensor) -> torch.dtype:
    """Choose the type of the operands of large products: bfloat16 where the input or autocast says so."""
    if query.dtype == torch.float64:
        return torch.float64
    # float16 has too short a range for features
    return torch.bfloat16 if autocast_dtype(query) == torch.bfloat16 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast changes no type."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


class Stream:
    """Query, key and value (B, H, L, E) of one call."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid_mask: Tensor | None,
        feature_map: FeatureMap,
        product: torch.dtype,
    ) -> None:
        self.tensors = query, key, value
        self.valid_mask = valid_mask
        self.feature_map = feature_map
        self.product = product
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.batch, self.heads, self.length, _ = query.shape
        self.groups = self.batch * self.heads
        self.value_width = value.shape[-1]
        self.state_width = self.value_width + ALIGNMENT.get(product, DEFAULT_ALIGNMENT)

    def state(self, num_sequences: int = 1) -> Tensor:
        """Return empty states (G, num_sequences, M·X) in the computing type."""
        size = self.feature_map.num_features * self.state_width
        return torch.zeros(self.groups, num_sequences, size, dtype=self.dtype, device=self.tensors[0].device)

    def columns(self, states: Tensor) -> Tensor:
        """View states (G, N, M·X) without their alignment: (G, N, M, width of value + 1)."""
        return states.view(*states.shape[:2], -1, self.state_width)[..., : self.value_width + 1]

    def operand(self, tensor: Tensor) -> Tensor:
        """Round a tensor to the product type."""
        return tensor.to(self.product)

    def gather(self, tensor: Tensor, piece: Piece) -> Tensor:
        """Gather the rows of a piece (B, H, S, ·) out of (B, H, L, ·); empty slots hold any row."""
        rows = tensor[:, :, piece.span]
        return rows if piece.source is None else rows.index_select(2, piece.source)

    def write(self, target: Tensor, piece: Piece, rows: Tensor) -> None:
        """Write the rows (B, H, S, ·) of a piece to their tokens in `target` (B, H, L, ·)."""
        target[:, :, piece.span] = rows if piece.slots is None else rows.index_select(2, piece.slots)

    def rows(self, which: int, piece: Piece) -> Tensor:
        """Gather query (0) or key (1) of a piece, (B, H, S, E); contiguous, so that one product forms all features."""
        rows = self.gather(self.tensors[which], piece)
        takes_them = rows.dtype == self.product == torch.bfloat16 and self.feature_map.takes_bfloat16
        return rows.contiguous() if takes_them else rows.to(self.dtype).contiguous()

    def chunks(self, rows: Tensor, piece: Piece) -> Tensor:
        """Cut rows (B, H, S, ·) into chunks (G·N, C, ·)."""
        return rows.reshape(self.groups * piece.num_chunks, piece.chunk, rows.shape[-1])

    def unchunk(self, chunks: Tensor) -> Tensor:
        """Join chunks (G·N, C, ·) to rows (B, H, S, ·)."""
        return chunks.view(self.batch, self.heads, -1, chunks.shape[-1])

    def query_chunks(self, piece: Piece) -> Tensor:
        """Form φ(q) of a piece as chunks (G·N, C, M)."""
        return self.chunks(self.feature_map.query_features(self.rows(0, piece)), piece)

    def key_chunks(self, piece: Piece) -> Tensor:
        """Form φ(k) of a piece as chunks (G·N, C, M)."""
        return self.chunks(self.feature_map.key_features(self.rows(1, piece)), piece)

    def values_and_ones(self, piece: Piece) -> Tensor:
        """Form [v, 1, 0…] of a piece as chunks (G·N, C, X) in the product type.

        Padding and empty slots have a row of zeros: whatever their keys are, they enter neither numerator nor normalizer.
        """
        rows = self.gather(self.tensors[2], piece)
        extended = torch.zeros(*rows.shape[:3], self.state_width, dtype=self.product, device=rows.device)
        extended[..., : self.value_width] = rows
        extended[..., self.value_width] = 1
        return self.chunks(self.real(extended, piece), piece)

    def real(self, rows: Tensor, piece: Piece) -> Tensor:
        """Set the rows (B, H, S, ·) of padding and empty slots to zero, in place."""
        if self.valid_mask is not None:
            rows *= self.gather(self.valid_mask[:, None, :, None], piece)
        return rows if piece.filled is None else rows.mul_(piece.filled)

    def write_grad_values(self, target: Tensor, piece: Piece, gradient: Tensor) -> None:
        """Write the gradient (G·N, C, X) of `values_and_ones` to `target` (B, H, L, E)."""
        self.write(target, piece, self.real(self.unchunk(gradient)[..., : self.value_width], piece))


class FeatureGradients:
    """Gradients of queries, keys and parameters of the feature map, collected piece by piece."""

    def __init__(self, stream: Stream, needs: tuple[bool, bool], parameters: tuple[Tensor, ...]) -> None:
        self.stream = stream
        self.gradients = [torch.empty_like(t) if n else None for t, n in zip(stream.tensors[:2], needs, strict=True)]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.parameter_gradients = [torch.zeros_like(p) for p in self.parameters]

    def features(self, which: int, piece: Piece) -> tuple[Tensor, Tensor]:
        """Return rows (B, H, S, E) of query (0) or key (1) and their features (B, H, S, M), with a graph if needed."""
        feature_map = self.stream.feature_map
        needs_graph = not feature_map.has_gradients
        with torch.set_grad_enabled(needs_graph):
            rows = self.stream.rows(which, piece).detach().requires_grad_(needs_graph)
            return rows, feature_map.query_features(rows) if which == 0 else feature_map.key_features(rows)

    def add(self, which: int, piece: Piece, rows: Tensor, features: Tensor, gradient: Tensor) -> None:
        """Send `gradient` (G·N, C, M) of the features back to the rows and to the map's parameters."""
        target, feature_map = self.gradients[which], self.stream.feature_map
        if target is None and not self.parameters:
            return
        gradient = gradient.view(features.shape)
        if feature_map.has_gradients:
            assert target is not None and not self.parameters, "maps with parameters have no gradients of their own"
            backward = feature_map.query_gradient if which == 0 else feature_map.key_gradient
            self.stream.write(target, piece, backward(rows, features.detach(), gradient))
            return
        grad_rows, *grad_parameters = torch.autograd.grad(
            features, [rows, *self.parameters], gradient.to(features.dtype), allow_unused=True, materialize_grads=True
        )
        if target is not None:
            self.stream.write(target, piece, grad_rows)
        for total, part in zip(self.parameter_gradients, grad_parameters, strict=True):
            total.add_(part)

    def of_parameters(self, parameters: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
        """Yield the gradients in the order of `parameters`."""
        remaining = iter(self.parameter_gradients)
        return (next(remaining) if p.requires_grad else None for p in parameters)
