"""The processes of a run, as Accelerate's launcher started them."""

import os
from typing import cast

import torch.distributed
from accelerate import Accelerator, DistributedType

from protein_lm.attention.parallel import Group
from protein_lm.choices import Precision
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM


def start_accelerator(precision: Precision) -> Accelerator:
    """Accelerate as its launcher configured it.

    Raises:
        ConfigError: it is configured for hardware or a library that is not there.
    """
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Launchers start CPU processes as they start those of GPUs, but with no GPU to see.
    is_for_cpus = num_launched > 1 and os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] in ("", "-1")
    mixed_precision = "bf16" if precision is Precision.BFLOAT16 else "no"
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, cpu=is_for_cpus)
        reason = "" if accelerator.num_processes == num_launched else "no GPU is here"
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            reason = f"each process holds the whole model, which {accelerator.distributed_type.value} takes apart"
    except (RuntimeError, ValueError, ImportError, NotImplementedError, AssertionError) as error:
        accelerator, reason = None, str(error).strip().partition("\n")[0]
    if accelerator is None or reason:
        raise ConfigError(
            f"{num_launched} process(es) cannot train as Accelerate is configured: {reason}; choose a configuration for this "
            "machine: scripts/accelerate/cpu.yaml or ddp.yaml"
        )
    return accelerator


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
