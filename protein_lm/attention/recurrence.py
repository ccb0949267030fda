"""Linear attention as a recurrent network: a state of fixed size goes from token to token.

Source: Katharopoulos et al. 2020 (arXiv 2006.16236), section 3.3. The state (G, M, X) holds Σ φ(k)ᵀ[v, 1, 0…] of all keys
seen so far, in float32, G = B·H groups.
"""

import torch
from torch import Tensor
from torch.nn import functional

from protein_lm.attention.checks import check_inputs
from protein_lm.attention.feature_maps import FeatureMap
from protein_lm.attention.linear import causal_plan, walk_causal
from protein_lm.attention.stream import DEFAULT_ALIGNMENT, Stream


def new_linear_state(num_groups: int, feature_map: FeatureMap, value_width: int, device: torch.device) -> Tensor:
    """The state before the first key."""
    return torch.zeros(num_groups, feature_map.num_features, value_width + DEFAULT_ALIGNMENT, device=device)


@torch.no_grad()
def extend_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, feature_map: FeatureMap, state: Tensor
) -> Tensor:
    """Causal attention of S tokens (B, H, S, E) that follow those in `state` (B·H, M, X), which is updated in place.

    Equals the rows of `linear_attention` over the whole sequence. Everything is float32; there are no gradients.

    Returns:
        (B, H, S, width of value) in the type of `value`.

    Raises:
        ValueError: shapes that do not fit each other, or a state of other groups or features.
    """
    check_inputs(query, key, value, None, None)
    feature_map.check(query.shape[-1])
    groups = query.shape[0] * query.shape[1]
    expected = groups, feature_map.num_features, value.shape[-1] + DEFAULT_ALIGNMENT
    if state.shape != expected:
        raise ValueError(
            f"the state is {tuple(state.shape)}, expected {expected}: it belongs to another batch or model"
        )
    with torch.autocast(query.device.type, enabled=False):
        if query.shape[2] == 1:
            return _step(query, key, value, feature_map, state)
        stream = Stream(query, key, value.to(state.dtype), None, feature_map, state.dtype)
        walk = walk_causal(stream, causal_plan(stream, None), state.view(groups, 1, -1), keep=False)
        return walk.output.to(value.dtype)


def _step(query: Tensor, key: Tensor, value: Tensor, feature_map: FeatureMap, state: Tensor) -> Tensor:
    width = value.shape[-1]
    queries = feature_map.query_features(query.to(state.dtype)).view(len(state), 1, -1)
    keys = feature_map.key_features(key.to(state.dtype)).view(len(state), -1, 1)
    extended = functional.pad(value.to(state.dtype).reshape(len(state), 1, width), (0, 1), value=1.0)
    extended = functional.pad(extended, (0, DEFAULT_ALIGNMENT - 1))
    state.baddbmm_(keys, extended)
    numerator = torch.bmm(queries, state)
    return (numerator[..., :width] / numerator[..., width : width + 1]).view(value.shape).to(value.dtype)
