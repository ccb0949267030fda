"""A model's weights under another kind of attention: the backward compatibility of Performers.

Source: Choromanski et al. 2021 (arXiv 2009.14794), section 4.2: weights trained with exact attention put into a Performer.
"""

from collections.abc import Sequence
from typing import Any

import torch

from protein_lm.config import ModelConfig, parse
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM


def with_attention(model: ProteinLM, *, attention: str | Sequence[str], seed: int = 0, **changes: Any) -> ProteinLM:
    """A new model with the weights of `model` and other attention; `model` stays as it is.

    What belongs to the new kind alone (random features, trainable kernels) is drawn from `seed`.

    Args:
        model: any model.
        attention: a kind for all layers, or one for each.
        seed: of the draw.
        changes: other settings of the kind, such as `num_random_features`.

    Raises:
        ConfigError: an unknown kind or setting, or a kind whose projections have another shape (lsh shares those of queries
            and keys; bidirectional local-global has two of each).
    """
    settings = model.config.model_dump(mode="json") | {"attention": attention} | changes
    converted = ProteinLM(parse(ModelConfig, settings, "the converted model"))
    converted.initialize(torch.Generator().manual_seed(seed))
    target = converted.state_dict()
    for name, weight in model.state_dict().items():
        if ".operation." in name:
            continue
        if name not in target or target[name].shape != weight.shape:
            raise ConfigError(
                f"the weight {name} of shape {tuple(weight.shape)} has no place in a model with "
                f"{converted.config.attention_name} attention; train such a model from the start"
            )
        target[name] = weight
    converted.load_state_dict(target)
    return converted.to(model.device).train(model.training)
