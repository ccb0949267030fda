"""Linear attention as a recurrent network: a state of fixed size goes from token to token.

Source: Katharopoulos et al. 2020 (arXiv 2006.16236), section 3.3.
"""

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.operations.linear import causal_plan, walk_causal
from protein_lm.attention.operations.linear_stream import DEFAULT_ALIGNMENT, Stream, without_autocast

NUM_SLOTS = 16
"""Slots for waiting keys. Each step reads these keys, and every NUM_SLOTS steps write the sums anew. At M = 256 features and
heads of 64, this number moves the least memory."""


class LinearState:
    """Σ φ(k)ᵀ[v, 1, 0…] of all keys so far, for G = B·H groups, in float32.

    The last keys wait until all slots are taken. Thousands of small terms added one by one would lose digits to rounding,
    and adding to the sums at each step would take twice the time.
    """

    def __init__(
        self, batch_size: int, num_heads: int, feature_map: FeatureMap, value_width: int, device: torch.device
    ) -> None:
        """The state before the first key."""
        width, num_groups = value_width + DEFAULT_ALIGNMENT, batch_size * num_heads
        self.num_heads = num_heads
        self.value_width = value_width
        self.sums = torch.zeros(num_groups, feature_map.num_features, width, device=device)
        """(G, M, X) over all keys but the waiting ones."""
        self.waiting_keys = torch.zeros(num_groups, NUM_SLOTS, feature_map.num_features, device=device)
        """(G, slots, M)."""
        self.waiting_values = torch.zeros(num_groups, NUM_SLOTS, width, device=device)
        """(G, slots, X)."""
        self.waiting_values[..., value_width] = 1
        self.num_waiting = 0
        """Slots that are taken."""

    def settle(self) -> None:
        """Add the waiting keys to the sums."""
        if self.num_waiting:
            keys, values = self._waiting()
            self.sums.baddbmm_(keys.mT, values)
            self.num_waiting = 0

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read one more token, features (G, 1, M) and value (G, 1, width of value); return its output, like the value."""
        if self.num_waiting == NUM_SLOTS:
            self.settle()
        slot = self.num_waiting
        self.waiting_keys[:, slot : slot + 1] = key
        self.waiting_values[:, slot : slot + 1, : self.value_width] = value
        self.num_waiting = slot + 1
        keys, values = self._waiting()
        # Numerator and normalizer (G, 1, X): settled keys plus waiting ones.
        numerator = torch.bmm(query, self.sums).baddbmm_(torch.bmm(query, keys.mT), values)
        return numerator[..., : self.value_width] / numerator[..., self.value_width : self.value_width + 1]

    def put(self, row: int, other: "LinearState") -> None:
        """Let a row resume from `other`, a state of one row; other rows stay as they are."""
        other.settle()
        groups = slice(row * self.num_heads, (row + 1) * self.num_heads)
        self.sums[groups] = other.sums
        self.waiting_keys[groups, : self.num_waiting] = 0  # a key without features is seen by no query

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows of these numbers (K,), in this order."""
        heads = torch.arange(self.num_heads, device=rows.device)
        groups = (rows[:, None] * self.num_heads + heads).flatten().to(self.sums.device)
        self.sums = self.sums[groups]
        self.waiting_keys, self.waiting_values = self.waiting_keys[groups], self.waiting_values[groups]

    def _waiting(self) -> tuple[Tensor, Tensor]:
        return self.waiting_keys[:, : self.num_waiting], self.waiting_values[:, : self.num_waiting]


@torch.no_grad()
def extend_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, feature_map: FeatureMap, state: LinearState
) -> Tensor:
    """Attend causally from S tokens (B, H, S, E) that follow those in `state`, which is updated in place.

    The result equals the rows of `linear_attention` over the whole sequence. Everything is float32, without gradients.

    Returns:
        (B, H, S, width of value) in the type of `value`.

    Raises:
        ValueError: shapes that do not fit each other, or a state of other groups or features.
    """
    check_inputs(query, key, value, None, None)
    feature_map.check(query.shape[-1])
    groups, sums = query.shape[0] * query.shape[1], state.sums
    expected = groups, feature_map.num_features, value.shape[-1] + DEFAULT_ALIGNMENT
    if sums.shape != expected:
        raise ValueError(f"the state is {tuple(sums.shape)}, expected {expected}: it belongs to another batch or model")
    with without_autocast(query.device):
        if query.shape[2] == 1:
            query, key = feature_map.query_features(query.to(sums.dtype)), feature_map.key_features(key.to(sums.dtype))
            output = state.step(query.flatten(0, 1), key.flatten(0, 1), value.to(sums.dtype).flatten(0, 1))
            return output.view(value.shape).to(value.dtype)
        state.settle()
        stream = Stream(query, key, value.to(sums.dtype), None, feature_map, sums.dtype)
        walk = walk_causal(stream, causal_plan(stream, None), sums.view(groups, 1, -1), keep=False)
        return walk.output.to(value.dtype)
