"""Runs whose processes hold a shard each of weights, gradients and moments: FSDP2, torch's `fully_shard`.

Outside of a forward or backward pass a parameter of such a run is a DTensor, which all processes must ask for together.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor that processes hold shards of; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU of a process that keeps them, gathered one by one; nothing in a process that does not."""
    kept = {}
    for name, tensor in tensors.items():
        found = whole(tensor.detach())
        if keep:
            kept[name] = found.cpu()
    return kept


def own_shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard, split as a parameter is, of a tensor of its shape that every process has whole."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


@contextmanager
def whole_weights(model: nn.Module, *, reshard_after_forward: bool) -> Iterator[None]:
    """Within, every process holds all weights, as plain parameters, and may use the model without the others.

    Args:
        model: what `fully_shard` was called on last; nothing happens to a model that is not sharded.
        reshard_after_forward: what holds for its blocks again afterwards.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(reshard_after_forward and module is not model, recurse=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold shards of a model that Accelerate has prepared."""
    return isinstance(model, FSDPModule)
