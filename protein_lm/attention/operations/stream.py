"""The tensors of one streamed call, piece by piece: rows gathered, features formed, results written back.

G = B·H groups, N chunks of C places in a piece, S = N·C places, X = width of values + alignment.

Everything is float32 or better, except that the operands of the large products are rounded to the product type
(bfloat16 for bfloat16 input or under autocast). Normalizers and running states are summed in float32. Features are formed in
float32, or by maps that lose nothing by it in bfloat16: see `FeatureMap.takes_bfloat16`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.operations.pieces import Piece

ALIGNMENT = {torch.bfloat16: 16}
"""Columns added behind the values: the first is the column of ones, the rest keeps rows aligned for vector units."""
DEFAULT_ALIGNMENT = 8


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """What autocast has matrix products of a tensor compute in; where it is off, the tensor's own type."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def product_dtype(query: Tensor) -> torch.dtype:
    """Type of the operands of the large products: bfloat16 where the input or autocast says so."""
    if query.dtype == torch.float64:
        return torch.float64
    # float16 has too short a range for features
    return torch.bfloat16 if autocast_dtype(query) == torch.bfloat16 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast changes no type."""
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
        """Empty states (G, num_sequences, M·X) in the computing type."""
        size = self.feature_map.num_features * self.state_width
        return torch.zeros(self.groups, num_sequences, size, dtype=self.dtype, device=self.tensors[0].device)

    def columns(self, states: Tensor) -> Tensor:
        """What states (G, N, M·X) hold without the alignment, (G, N, M, width of value + 1); a view."""
        return states.view(*states.shape[:2], -1, self.state_width)[..., : self.value_width + 1]

    def operand(self, tensor: Tensor) -> Tensor:
        """Rounded to the product type."""
        return tensor.to(self.product)

    def place(self, tensor: Tensor, piece: Piece) -> Tensor:
        """Rows of a piece (B, H, S, ·) out of (B, H, L, ·); what empty places hold has no meaning."""
        rows = tensor[:, :, piece.span]
        return rows if piece.source is None else rows.index_select(2, piece.source)

    def write(self, target: Tensor, piece: Piece, rows: Tensor) -> None:
        """Put the rows (B, H, S, ·) of a piece where they belong in `target` (B, H, L, ·)."""
        target[:, :, piece.span] = rows if piece.places is None else rows.index_select(2, piece.places)

    def rows(self, which: int, piece: Piece) -> Tensor:
        """Query (0) or key (1) of a piece, (B, H, S, E); contiguous, so that one product forms all features."""
        rows = self.place(self.tensors[which], piece)
        takes_them = rows.dtype == self.product == torch.bfloat16 and self.feature_map.takes_bfloat16
        return rows.contiguous() if takes_them else rows.to(self.dtype).contiguous()

    def chunks(self, rows: Tensor, piece: Piece) -> Tensor:
        """(B, H, S, ·) as (G·N, C, ·)."""
        return rows.reshape(self.groups * piece.num_chunks, piece.chunk, rows.shape[-1])

    def unchunk(self, chunks: Tensor) -> Tensor:
        """(G·N, C, ·) as (B, H, S, ·)."""
        return chunks.view(self.batch, self.heads, -1, chunks.shape[-1])

    def query_chunks(self, piece: Piece) -> Tensor:
        """φ(q) as chunks (G·N, C, M)."""
        return self.chunks(self.feature_map.query_features(self.rows(0, piece)), piece)

    def key_chunks(self, piece: Piece) -> Tensor:
        """φ(k) as chunks (G·N, C, M)."""
        return self.chunks(self.feature_map.key_features(self.rows(1, piece)), piece)

    def values_and_ones(self, piece: Piece) -> Tensor:
        """[v, 1, 0…] as chunks (G·N, C, X) in the product type; a row of zeros for padding and empty places.

        Such a row enters neither numerator nor normalizer, whatever the features of its key are.
        """
        rows = self.place(self.tensors[2], piece)
        extended = torch.zeros(*rows.shape[:3], self.state_width, dtype=self.product, device=rows.device)
        extended[..., : self.value_width] = rows
        extended[..., self.value_width] = 1
        return self.chunks(self.real(extended, piece), piece)

    def real(self, rows: Tensor, piece: Piece) -> Tensor:
        """Rows (B, H, S, ·) in place, with those of padding and empty places set to zero."""
        if self.valid_mask is not None:
            rows *= self.place(self.valid_mask[:, None, :, None], piece)
        return rows if piece.filled is None else rows.mul_(piece.filled)

    def write_grad_values(self, target: Tensor, piece: Piece, gradient: Tensor) -> None:
        """Put the gradient (G·N, C, X) of `values_and_ones` into `target` (B, H, L, E)."""
        self.write(target, piece, self.real(self.unchunk(gradient)[..., : self.value_width], piece))


class FeatureGradients:
    """Features of a piece with their graph, and the gradients that flow back through them."""

    def __init__(self, stream: Stream, needs: tuple[bool, bool], parameters: tuple[Tensor, ...]) -> None:
        self.stream = stream
        self.gradients = [torch.empty_like(t) if n else None for t, n in zip(stream.tensors[:2], needs, strict=True)]
        self.parameters = [p for p in parameters if p.requires_grad]
        self.parameter_gradients = [torch.zeros_like(p) for p in self.parameters]

    def features(self, which: int, piece: Piece) -> tuple[Tensor, Tensor]:
        """Rows (B, H, S, E) of query (0) or key (1), and their features (B, H, S, M) with a graph if the map needs one."""
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
        """Gradients in the order of `parameters`."""
        remaining = iter(self.parameter_gradients)
        return (next(remaining) if p.requires_grad else None for p in parameters)
