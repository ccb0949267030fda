"""The processes of a run, as Accelerate's launcher started them, and the shards of weights that they may hold.

Where each process holds a shard of weights, gradients and moments, FSDP2 (torch's `fully_shard`) does the work. Outside of a
forward or backward pass a parameter of such a run is a DTensor, which all processes must ask for together.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch.distributed
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from protein_lm.attention.sequence_parallel import Group
from protein_lm.choices import Precision
from protein_lm.config import TrainingConfig
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import Choice, choose


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Start Accelerate as its launcher configured it. `common_precision` chooses the type of matrix products.

    Raises:
        ConfigError: the hardware or library that it is configured for is missing, or that way is not offered.
    """
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Launchers start CPU processes as they start those of GPUs, but with no GPU to see.
    is_for_cpus = num_launched > 1 and os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] in ("", "-1")
    try:
        sharding = _sharding(config) if num_launched > 1 else None
        accelerator = Accelerator(mixed_precision="no", cpu=is_for_cpus, fsdp_plugin=sharding)
        reason = "" if accelerator.num_processes == num_launched else "no GPU is here"
        if accelerator.distributed_type is DistributedType.DEEPSPEED:
            reason = "DeepSpeed clips and steps on its own; FSDP (scripts/accelerate/fsdp.yaml) shards the same"
        if sharding is not None and accelerator.distributed_type is DistributedType.MULTI_CPU:
            # Accelerate shards on GPUs only; torch does it on CPUs as well.
            accelerator.state.fsdp_plugin = sharding
            accelerator.state.distributed_type = DistributedType.FSDP
    except (RuntimeError, ValueError, ImportError, NotImplementedError, AssertionError) as error:
        accelerator, reason = None, str(error).strip().partition("\n")[0]
    if accelerator is None or reason:
        raise ConfigError(
            f"{num_launched} process(es) cannot train as Accelerate is configured: {reason}; choose a configuration for this "
            "machine: scripts/accelerate/cpu.yaml, ddp.yaml or fsdp.yaml"
        )
    return accelerator


def common_precision(wanted: Precision, accelerator: Accelerator) -> Choice:
    """The choice of the first process, in all of them: the measurements of others might say something else.

    Raises:
        ConfigError: the device cannot compute with the precision that is asked for.
    """
    choices = [choose(wanted, accelerator.device.type)]
    broadcast_object_list(choices)
    return choices[0]


def _sharding(config: TrainingConfig) -> FullyShardedDataParallelPlugin | None:
    """The settings of shards that the launcher asks for, None if it does not.

    Weights are gathered in float32. Autocast then rounds as in models that are not sharded: the numbers are the same.

    Raises:
        ValueError: settings that are not tested, so not offered.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP is offered as fsdp_version 2 alone")
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())
    refused = {
        "fsdp_auto_wrap_policy SIZE_BASED_WRAP": plugin.auto_wrap_policy is size_based_auto_wrap_policy,
        "fsdp_transformer_layer_cls_to_wrap (leave it out)": plugin.transformer_cls_names_to_wrap is not None,
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing (use training.gradient_checkpointing)": plugin.activation_checkpointing,
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "training.orthogonality, which needs whole weights": config.orthogonality,
    }
    if asked := [name for name, is_asked in refused.items() if is_asked]:
        raise ValueError(f"FSDP is not offered with {', '.join(asked)}")
    return plugin


@contextmanager
def last_work() -> Iterator[None]:
    """Within, this process has left the others of its run, if it has any; afterwards it ends, successfully.

    It ends without the destructors of what connected it: they may wait forever (see `never_free`), or crash.
    """
    is_connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    if is_connected:
        torch.distributed.destroy_process_group()
    yield
    if is_connected:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def never_free(connected: object) -> None:
    """Keep an object with connections to other processes until this process ends, since freeing it may wait forever.

    The destructors of torch's groups of processes hold Python's lock while they wait for a thread of Gloo. That thread may
    need the lock itself, to free the tensors of the last exchange.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connected))


def group_of_rows(model: ProteinLM, together: int, num_processes: int) -> Group | None:
    """The `together` processes that share their batches with this one; None if each has batches of its own.

    Raises:
        ConfigError: the model cannot be split, or the number of processes cannot be divided.
    """
    if together == 1:
        return None
    try:
        model.check_can_be_split()
    except ValueError as error:
        raise ConfigError(f"training.sequence_parallel {together}: {error}") from error
    if num_processes % together:
        raise ConfigError(
            f"training.sequence_parallel {together} does not divide the {num_processes} process(es) of this run; start "
            f"{together} processes, or a multiple"
        )
    group, _ = torch.distributed.new_subgroups(together)
    return cast(Group, group)


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sums of values on the CPU; a single process never sends them to its device, which may lack float64."""
    if accelerator.num_processes == 1:
        return values
    return cast(Tensor, accelerator.reduce(values.to(accelerator.device), reduction="sum")).cpu()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather whole tensors one by one, onto the CPU of a process that keeps them; other processes get none."""
    kept = {}
    for name, tensor in tensors.items():
        found = whole(tensor.detach())
        if keep:
            kept[name] = found.cpu()
    return kept


def own_shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of a tensor that every process has whole, split like a parameter of the same shape."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


@contextmanager
def whole_weights(model: nn.Module, *, reshard_after_forward: bool) -> Iterator[None]:
    """Within, every process holds all weights, as plain parameters, and may use the model without the others.

    Args:
        model: the outermost module of `fully_shard`; nothing happens to a model that is not sharded.
        reshard_after_forward: the setting to restore for its blocks.
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
