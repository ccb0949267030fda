"""Low-rank adapters of the matrices of a frozen model: W x + (alpha / rank) B A x, with A and B trained.

The library `peft` trains them; to use them, they are added to W. Source: Hu et al. 2021 (LoRA, arXiv 2106.09685).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.choices import LoraLayers
from protein_lm.config import TrainingConfig
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM

_PARTS = {LoraLayers.ALL: "(attention|feedforward)", LoraLayers.ATTENTION: "attention"}
_NAME = ".default"
"""Suffix of `peft` for the names of its matrices, which ours do not have."""


def add_adapters(model: ProteinLM, config: TrainingConfig) -> None:
    """Freeze a model and give the matrices of its blocks adapters, drawn from the seed; its outputs do not change.

    Raises:
        ConfigError: the library `peft` is not installed, or the rank is not below that of the matrices.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("training.lora_rank needs the library peft: run pip install peft, or set it to 0") from error
    if config.lora_rank >= model.config.width:
        raise ConfigError(
            f"training.lora_rank {config.lora_rank} saves nothing in a model of width {model.config.width}; lower it"
        )
    targets = rf"blocks\.\d+\.{_PARTS[config.lora_layers]}\.(input|output)_projection"
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)  # type: ignore[arg-type]
    inject_adapter_in_model(settings, model)
    generator = torch.Generator().manual_seed(config.seed)
    for name, weight in adapter_weights(model).items():
        if name.endswith("lora_A.weight"):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices of a model's adapters by name; none if it has no adapters."""
    named = model.named_parameters()
    return {name.replace(_NAME, ""): weight for name, weight in named if ".lora_A." in name or ".lora_B." in name}


def merge(weights: dict[str, Tensor], adapters: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """Add adapters to the weights of a model.

    Args:
        weights: weights of the model without adapters, by name.
        adapters: matrices with names as from `adapter_weights`.
        settings: `rank` and `alpha`.

    Raises:
        KeyError: an adapter without its other half, or of a matrix that the model does not have.
        RuntimeError: shapes do not fit.
    """
    merged = dict(weights)
    scale = settings["alpha"] / settings["rank"]
    for name, first in adapters.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            weight, change = merged[f"{layer}.weight"], adapters[f"{layer}.lora_B.weight"] @ first
            if change.shape != weight.shape:
                raise RuntimeError(f"{layer}: {tuple(change.shape)} for a weight of {tuple(weight.shape)}")
            merged[f"{layer}.weight"] = weight + scale * change
    return merged
