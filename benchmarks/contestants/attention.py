"""The attention operation, forward and backward: ours and torch's, and what all contestants of the case share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.contestants.base import DTYPES, HEAD_WIDTH, HEADS, NUM_FEATURES, UNLIMITED, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm.attention.dispatch import linear_attention
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures, SoftmaxFeatures

Attend = Callable[..., Tensor]
"""query, key, value (B, H, L, E) -> (B, H, L, E); for layers, hidden states (B, L, D) -> (B, L, D)."""
BuildAttend = Callable[[Spec], Attend]


def operation_inputs(spec: Spec) -> tuple[Tensor, ...]:
    """Normal query, key and value (B, H, L, E), the same for every contestant."""
    generator = torch.Generator().manual_seed(0)
    shape = spec.batch, HEADS, spec.length, HEAD_WIDTH
    draws = (torch.randn(shape, generator=generator).to(DTYPES[spec.dtype]) for _ in range(3))
    return tuple(draw.requires_grad_() for draw in draws)


def forward_and_backward(attend: Attend, inputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...] = ()) -> Prepared:
    """One pass: the output, then the gradients of inputs and parameters for a random gradient of the output."""
    first = inputs[0]
    gradient = torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).to(first.dtype)
    tokens = first.shape[0] * first.shape[-2]

    def once() -> None:
        torch.autograd.grad(attend(*inputs), (*inputs, *parameters), gradient)

    return Prepared(once, units=tokens)


def operation(build: BuildAttend) -> Callable[[Spec], Prepared]:
    """A contestant's `prepare` out of what builds its attention operation."""

    def prepare(spec: Spec) -> Prepared:
        return forward_and_backward(build(spec), operation_inputs(spec))

    return prepare


def ours(feature_map: type[ReLUFeatures] | type[SoftmaxFeatures]) -> BuildAttend:
    """`protein_lm.attention.dispatch.linear_attention` with these random features."""

    def build(spec: Spec) -> Attend:
        features: FeatureMap = feature_map(HEAD_WIDTH, NUM_FEATURES)
        causal = spec.direction == "causal"
        return lambda query, key, value: linear_attention(query, key, value, features, causal=causal)

    return build


def torch_sdpa(spec: Spec) -> Attend:
    """Exact attention of torch, O(L²) in time."""
    causal = spec.direction == "causal"
    return lambda query, key, value: scaled_dot_product_attention(query, key, value, is_causal=causal)


BUILDERS: dict[str, BuildAttend] = {
    "ours-relu": ours(ReLUFeatures),
    "ours-softmax": ours(SoftmaxFeatures),
    "torch-sdpa": torch_sdpa,
}

CONTESTANTS = {
    "ours-relu": Contestant(operation(BUILDERS["ours-relu"]), {"causal": UNLIMITED, "bidirectional": UNLIMITED}),
    "ours-softmax": Contestant(operation(BUILDERS["ours-softmax"]), {"causal": UNLIMITED, "bidirectional": UNLIMITED}),
    "torch-sdpa": Contestant(operation(torch_sdpa), {"causal": 8192, "bidirectional": 8192}),
}
