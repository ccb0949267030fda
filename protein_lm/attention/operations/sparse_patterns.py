"""The pattern of a sparse attention: a window, a few global tokens, and whole blocks at a stride or drawn at random.

Positions count from the first token of a sequence. So a pattern does not depend on the row that the sequence lies in, on its
padding or on its neighbours.

Sources: Beltagy et al. 2020 (Longformer, arXiv 2004.05150); Child et al. 2019 (arXiv 1904.10509) for strides; Zaheer et al.
2020 (BigBird, arXiv 2007.14062) for random blocks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.native.numpy_reader import mix


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A query at position i sees j if j is near i, j < num_global_tokens, or i's block picks the block of j."""

    window: int
    """Tokens in sight: bidirectional |i - j| <= window // 2, causal the last `window` tokens, i included."""
    num_global_tokens: int = 0
    """First tokens of a sequence, which all others see; bidirectional, they also see all others."""
    stride: int = 0
    """Blocks between the blocks picked at a stride; 0 for none."""
    num_strides: int = 0
    """Blocks picked at a stride on each side."""
    num_random_blocks: int = 0
    """Blocks drawn per block of queries; causal: out of those before it."""
    seed: int = 0
    """Seed of the random blocks."""
    block: int = 64
    """Tokens per block."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.block < 1:
            raise ValueError(f"window {self.window} and block {self.block} must be at least 1")

    def near(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        """Tell whether keys lie in the window; positions broadcast against each other."""
        distance = query_positions - key_positions
        if causal:
            return (distance >= 0) & (distance < self.window)
        return distance.abs() <= self.window // 2

    def reach(self, *, causal: bool) -> tuple[int, int]:
        """Count the blocks before and after a block into which its window may reach."""
        tokens = self.window - 1 if causal else self.window // 2
        blocks = -(-tokens // self.block)
        return blocks, 0 if causal else blocks

    def picks(self, blocks: NDArray[np.int64], num_blocks: NDArray[np.int64], *, causal: bool) -> NDArray[np.int64]:
        """Pick the blocks (N, picks) that each of the blocks (N,) sees whole; -1 for none.

        Block numbers count within a sequence; `num_blocks` (N,) are the blocks of each block's sequence.
        """
        columns = []
        for number in range(1, self.num_strides + 1):
            for sign in (-1, 1)[: 1 if causal else 2]:
                columns.append(blocks + sign * number * self.stride)
        choices = blocks if causal else num_blocks
        for number in range(self.num_random_blocks):
            # A well mixed number per block, modulo the number of blocks to choose from.
            offset = (self.seed * 1_000_003 + number) * 0x9E3779B97F4A7C15 % 2**64
            drawn = mix(blocks.astype(np.uint64) + np.uint64(offset)) % np.maximum(choices, 1).astype(np.uint64)
            columns.append(np.where(choices > 0, drawn.astype(np.int64), -1))
        if not columns:
            return np.empty((blocks.size, 0), dtype=np.int64)
        picked = np.stack(columns, axis=1)
        return np.where((picked >= 0) & (picked < num_blocks[:, None]), picked, -1)

    def visible(self, length: int, span: slice, *, causal: bool, device: torch.device) -> Tensor:
        """Form the pattern densely: boolean (S, length) for a span of S queries of one sequence."""
        queries = torch.arange(span.start, span.stop, device=device)[:, None]
        keys = torch.arange(length, device=device)
        seen = self.near(queries, keys, causal=causal) | (keys < self.num_global_tokens)
        # Which blocks see which whole: (blocks, blocks); picks of -1 go to a column behind the last one.
        num_blocks = -(-length // self.block)
        blocks = np.arange(num_blocks)
        picked = np.zeros((num_blocks, num_blocks + 1), dtype=bool)
        np.put_along_axis(picked, self.picks(blocks, np.full_like(blocks, num_blocks), causal=causal), True, axis=1)
        by_block = torch.from_numpy(picked[:, :num_blocks]).to(device)
        seen = seen | by_block[queries // self.block, keys // self.block]
        if causal:
            return seen & (keys <= queries)
        return seen | (queries < self.num_global_tokens)
