"""Optimizers, and their moments as tensors with names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.choices import OptimizerName, Precision
from protein_lm.config import TrainingConfig
from protein_lm.errors import ModelError, quoted
from protein_lm.training.muon import Muon
from protein_lm.training.processes import own_shard


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Build AdamW for all weights, or Muon for the matrices inside the blocks and AdamW for the others.

    Weight decay applies to the matrices inside the blocks; not to biases, norms, convolutions and embeddings.
    Sources: Loshchilov & Hutter 2019 (AdamW); Jordan et al. 2024 (Muon), updates scaled to those of AdamW as in Liu et
    al. 2025 (arXiv 2502.16982).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if _is_block_matrix(name, parameter)]
    others = [parameter for name, parameter in trained if not _is_block_matrix(name, parameter)]
    plain = {"params": others, "weight_decay": 0.0}
    if config.optimizer is OptimizerName.MUON and matrices:
        return [
            Muon(
                matrices,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                dtype=torch.bfloat16 if config.precision is Precision.BFLOAT16 else torch.float32,
            ),
            torch.optim.AdamW([plain], lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True),
        ]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, plain]
    return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)]


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight is a matrix between residual streams; weights of attention operations themselves are not."""
    is_matrix = parameter.ndim == 2 and "blocks" in name.split(".")
    return is_matrix and "convolution" not in name and ".operation." not in name


def optimizer_tensors(optimizers: Sequence[Any]) -> dict[str, Tensor]:
    """The moments of all optimizers by `optimizer.parameter.name`."""
    tensors = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{number}.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizers(optimizers: Sequence[Any], tensors: dict[str, Tensor]) -> None:
    """Give optimizers the moments that `optimizer_tensors` named; those that hold shards of weights get shards.

    Raises:
        ModelError: the moments belong to other weights.
    """
    for number, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            try:
                owner, index, name = key.split(".", 2)
                parameter = parameters[int(index)] if int(owner) == number else None
            except (ValueError, IndexError):
                raise ModelError(f"the training state has moments {quoted(key)} of no weight of this run") from None
            if parameter is None:
                continue
            if tensor.ndim and tensor.shape != parameter.shape:
                raise ModelError(f"the training state has moments {quoted(key)} of another shape than their weight")
            state.setdefault(int(index), {})[name] = own_shard(tensor, parameter)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
