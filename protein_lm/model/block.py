"""A pre-norm transformer block: x += attention(norm(x)); x += feedforward(norm(x))."""

from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.kinds import AttentionOperation
from protein_lm.model.convolution import ShortConvolution
from protein_lm.model.positions import rotate


class AttentionLayer(nn.Module):
    """Projects to queries, keys and values, applies positions, calls one operation, projects back."""

    def __init__(
        self, width: int, num_heads: int, operation: AttentionOperation, convolution: ShortConvolution | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.convolution = convolution
        self.input_projection = nn.Linear(width, 3 * width)
        self.operation = operation
        self.output_projection = nn.Linear(width, width)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid_mask: Tensor | None) -> Tensor:
        """Output (B, L, D) of hidden states (B, L, D); rotary tables (L, E); valid_mask (B, L) True for real tokens."""
        batch, length, width = hidden.shape
        if self.convolution is not None:
            hidden = self.convolution(hidden, valid_mask)
        projected = self.input_projection(hidden).view(batch, length, 3, self.num_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        output = self.operation(query, key, value.to(query.dtype), valid_mask)
        return self.output_projection(output.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.input_projection = nn.Linear(width, inner_width)
        self.output_projection = nn.Linear(inner_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.output_projection(functional.gelu(self.input_projection(hidden)))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual path."""

    def __init__(self, attention: AttentionLayer, feedforward: FeedForward, *, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid_mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), rotary, valid_mask))
        return hidden + self.dropout(self.feedforward(self.feedforward_norm(hidden)))
