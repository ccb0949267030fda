"""Search for the first number that is not finite, once a result turned out to be NaN or infinite."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from protein_lm.attention.packing import Packing
from protein_lm.model.language_model import ProteinLM

ALL_FINITE = "nothing"
"""The answer when all is finite."""


class _NonFinite(Exception):
    """Names the first input of attention that is not finite."""


@torch.no_grad()
def first_non_finite(model: ProteinLM, tokens: Tensor, **rows: Any) -> str:
    """Name the first tensor of a forward pass over `tokens` (B, L) that holds NaN or infinity.

    Checks the weights, then query, key and value of each layer, from the first on. Slow: for a pass that failed.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weights {name}"
    handles = []
    try:
        for number, operation in enumerate(model.operations(), 1):

            def look(_: Any, inputs: tuple[Any, ...], number: int = number) -> None:
                for what, tensor in zip(("query", "key", "value"), inputs, strict=False):
                    if not tensor.isfinite().all():
                        raise _NonFinite(f"the {what} of attention layer {number} of {model.config.num_layers}")

            handles.append(operation.register_forward_pre_hook(look))
        logits = model(tokens, **rows)
    except _NonFinite as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return ALL_FINITE if logits.isfinite().all() else "the output of the last layer"


def last_non_finite_gradient(model: ProteinLM, tokens: Tensor, targets: Tensor, packing: Packing) -> str:
    """Name the weights nearest to the output whose gradient holds NaN or infinity: there the backward pass failed.

    Gradients that weights hold do not change. Targets (B, L) below 0 are not predicted.
    """
    selected = targets >= 0
    logits = model(tokens, packing=packing, selected=selected)
    loss = functional.cross_entropy(logits.float(), targets[selected], reduction="sum")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*trained, strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for name, gradient in reversed(list(zip(names, gradients, strict=True))):
        if gradient is not None and not gradient.isfinite().all():
            return f"the gradient of {name}"
    return ALL_FINITE
