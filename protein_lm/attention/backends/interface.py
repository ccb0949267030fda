"""The interface of everything that computes attention, and the inputs of each operation.

A backend is a module with two functions, `takes` and `forward`. `dispatch` has the table of backends and chooses.
"""

from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.packing import Packing
from protein_lm.attention.sequence_parallel import Part

Inputs = TypeVar("Inputs", contravariant=True)


class Backend(Protocol[Inputs]):
    """One way to compute an operation."""

    def takes(self, inputs: Inputs, /) -> bool:
        """Tell whether this backend can compute the operation on these inputs, here and now."""
        ...

    def forward(self, inputs: Inputs, /) -> Tensor:
        """Compute the operation. Where inputs require gradients, autograd finds the backward pass."""
        ...


class LinearInputs(NamedTuple):
    """Inputs of linear attention, which fit each other; see `dispatch.linear_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    feature_map: FeatureMap
    causal: bool
    product: torch.dtype
    """Type of the operands of the large products."""
    valid_mask: Tensor | None = None
    packing: Packing | None = None
    part: Part | None = None


class ExactInputs(NamedTuple):
    """Inputs of softmax attention, which fit each other and have autocast's type; see `dispatch.exact_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    valid_mask: Tensor | None = None
    packing: Packing | None = None


class RotaryInputs(NamedTuple):
    """Inputs of rotary positions; see `dispatch.rotate`."""

    heads: Tensor
    cosines: Tensor
    sines: Tensor


def needs_gradients(*tensors: Tensor) -> bool:
    """Tell whether autograd will ask for a backward pass through these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
