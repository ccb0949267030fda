"""A model's weights under another kind of attention: the backward compatibility of Performers.

Source: Choromanski et al. 2021 (arXiv 2009.14794), section 4.2: weights trained with exact attention put into a Performer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.attention.kinds.table import attention_options, check_option, options_in, with_defaults
from protein_lm.config import OLDER_OPTIONS, ModelConfig
from protein_lm.errors import ConfigError, named
from protein_lm.files.settings import parse, parse_value
from protein_lm.model.block import AttentionLayer
from protein_lm.model.language_model import ProteinLM

_LEAST = 1e-12
"""Least sum of squares of a pair of channels: a channel that is always 0 has no scale."""


def parse_settings(settings: list[str]) -> Any:
    """Parse the attention of a model from settings such as `attention=performer-softmax` and `attention.num_features=64`.

    Returns:
        What `with_attention` takes as attention.

    Raises:
        ConfigError: not of this form, without a kind, or with an option that no layer has.
    """
    attention, options = None, {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        option = key.removeprefix("attention.") if key.startswith("attention.") else OLDER_OPTIONS.get(key)
        if not separator or not (option or key == "attention"):
            raise ConfigError(
                f"--set {named(setting)}: expected attention=KIND or attention.OPTION=value, for example "
                "attention=performer-softmax or attention.num_features=64"
            )
        if option:
            options[option] = parse_value(setting, value)
        else:
            attention = parse_value(setting, value)
    if not attention:
        raise ConfigError("no kind of attention is set; add --set attention=KIND, for example performer-softmax")
    attention = with_defaults(attention, options)
    for option in options.keys() - options_in(attention):
        try:
            check_option(attention_options(attention[0] if isinstance(attention, list) else attention).kind, option)
        except ValueError as error:
            raise ConfigError(f"--set attention.{named(option)}: {error}") from error
    return attention


def with_attention(model: ProteinLM, *, attention: Any, seed: int = 0) -> ProteinLM:
    """Return a new model with the weights of `model` and other attention; `model` does not change.

    What belongs to the new kind alone (random features, trainable kernels) is drawn from `seed`.

    Args:
        model: any model.
        attention: a kind for all layers, or a list with one for each: its name, or a dictionary with `kind` and options.
            Options that are not set are those of `model`.
        seed: seed of the draw.

    Raises:
        ConfigError: an unknown kind or option, or a kind whose projections have another shape (lsh shares those of queries
            and keys; bidirectional local-global has two of each).
    """
    settings = model.config.model_dump(mode="json")
    settings["attention"] = with_defaults(attention, options_in(model.config.attention))
    config = parse(ModelConfig, settings, "the converted model")
    converted = ProteinLM(config)
    converted.initialize(torch.Generator().manual_seed(seed))
    target = converted.state_dict()
    for name, weight in model.state_dict().items():
        if ".operation." in name:
            continue
        if name not in target or target[name].shape != weight.shape:
            raise ConfigError(
                f"the weight {name} of shape {tuple(weight.shape)} has no counterpart in a model with "
                f"{converted.config.attention_name} attention; train such a model from the start"
            )
        target[name] = weight
    converted.load_state_dict(target)
    return converted.to(model.device).train(model.training)


class QueryKeyScales(nn.Module):
    """Factors of the channels of queries and of keys, head by head, which can be folded into a layer's projections.

    A rotation of pairs of channels commutes with a factor that both have. With rotary positions, each pair therefore has one
    factor: it goes into the projections in front of the rotation, and costs nothing. Factors begin at 1.
    """

    def __init__(self, num_heads: int, head_width: int, *, in_pairs: bool) -> None:
        """Make factors of 1; with `in_pairs`, for rotary positions, channels i and i + E/2 share one."""
        super().__init__()
        self._repeats = 2 if in_pairs else 1
        shape = num_heads, head_width // self._repeats
        self.log_query = nn.Parameter(torch.zeros(shape))
        self.log_key = nn.Parameter(torch.zeros(shape))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply queries and keys (B, H, L, E), positions applied, by their factors."""
        of_query, of_key = self._factors()
        return query * of_query[:, None], key * of_key[:, None]

    @torch.no_grad()
    def balance(self, query: Tensor, key: Tensor) -> None:
        """Make mean squares of queries and keys (H, N, E) equal: then random features estimate their softmax best.

        No product changes: a query is multiplied by Ψ = (Σk² / Σq²)^(1/4), and a key divided by it.
        Source: Likhosherstov et al. 2023 (FAVOR#, arXiv 2302.00787), section 3; head by head, and in pairs, is ours.
        """
        of_query, of_key = (
            rows.square().mean(1).unflatten(-1, (self._repeats, -1)).sum(-2).clamp_min(_LEAST) for rows in (query, key)
        )
        self.log_query.copy_((of_key / of_query).log() / 4)
        self.log_key.copy_(-self.log_query)

    @torch.no_grad()
    def fold_into(self, layer: AttentionLayer) -> None:
        """Multiply the projections of a layer by these factors; it has separate queries and keys, not normalized."""
        factors = torch.cat([each.flatten() for each in self._factors()])
        projection = layer.input_projection
        projection.weight[: factors.numel()] *= factors[:, None]
        projection.bias[: factors.numel()] *= factors

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Factors (H, E) of queries and of keys."""
        return self.log_query.exp().repeat(1, self._repeats), self.log_key.exp().repeat(1, self._repeats)
