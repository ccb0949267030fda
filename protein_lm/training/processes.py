"""The processes of a run, as Accelerate's launcher started them."""

import os
from typing import cast

import torch.distributed
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from protein_lm.attention.parallel import Group
from protein_lm.choices import Precision
from protein_lm.config import TrainingConfig
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import Choice, choose


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate as its launcher configured it, but for the type of matrix products, see `common_precision`.

    Raises:
        ConfigError: it is configured for hardware or a library that is not there, or in a way that is not offered.
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
    """What the first process chooses, in all of them: the measurements of others might say something else.

    Raises:
        ConfigError: the device cannot compute with the precision that is asked for.
    """
    choices = [choose(wanted, accelerator.device.type)]
    broadcast_object_list(choices)
    return choices[0]


def _sharding(config: TrainingConfig) -> FullyShardedDataParallelPlugin | None:
    """How the launcher asks for shards of weights, gradients and moments; None: it does not.

    Weights are gathered in float32, and autocast rounds what it rounds in models that are not sharded: same numbers.

    Raises:
        ValueError: in a way that is not tested, so not offered.
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


def leave_processes() -> None:
    """End what connects the processes of a run, which otherwise may die of its own threads when they end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def group_of_rows(model: ProteinLM, together: int, num_processes: int) -> Group | None:
    """The `together` processes that hold a batch together with this one; None if each has batches of its own.

    Raises:
        ConfigError: the model cannot be split, or the processes not be grouped so.
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
