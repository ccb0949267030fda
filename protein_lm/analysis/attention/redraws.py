"""How attention varies with the random features: the same queries and keys, other draws."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm.analysis.attention.forms import Picture, Region
from protein_lm.analysis.attention.maps import LayerCall, visit_layers
from protein_lm.attention.feature_maps.performer import RandomFeatureMap
from protein_lm.attention.operations.lsh import Hash
from protein_lm.errors import ConfigError
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM


class Draws(NamedTuple):
    """Mean of a picture over draws, and its error."""

    mean: NDArray[np.float32]
    """Same shape as the picture."""
    standard_error: NDArray[np.float32]
    """Standard error of the mean: standard deviation over draws / √draws."""


def check_draws(model: ProteinLM, layers: Sequence[int]) -> None:
    """Refuse layers (from 1) that have neither random features nor hashes.

    Raises:
        ConfigError: naming the layer and its kind of attention.
    """
    operations = model.operations()
    for layer in layers:
        if not _drawn_modules(operations[layer - 1]):
            kind = model.config.attention_kinds[layer - 1]
            raise ConfigError(
                f"layer {layer} has {kind} attention, which draws nothing at random; leave out --num-draws, or choose "
                "other layers with --layer"
            )


def draw_features(
    model: ProteinLM,
    record: SequenceRecord,
    picture: Callable[[], Picture],
    *,
    region: Region,
    num_draws: int,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Draws:
    """Form a picture of each layer with other random features, seeded 0, 1, ...; the model does not change.

    Args:
        model: one that `check_draws` accepts.
        record: the protein.
        picture: makes an empty form for one layer.
        region: the part of the matrix that the form needs.
        num_draws: number of draws, 2 or more.
        layers: numbers of the layers.
        heads: numbers of the heads.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    means, errors = [], []

    def visit(_: int, call: LayerCall) -> None:
        operation = copy.deepcopy(call.operation)
        mean = squares = np.zeros(())
        for draw in range(num_draws):
            for module in _drawn_modules(operation):
                module.redraw(torch.Generator().manual_seed(draw))
            form = picture()
            call._replace(operation=operation).show([form], 0, heads, region.rows)
            difference = form.values[0] - mean
            mean = mean + difference / (draw + 1)
            squares = squares + difference * (form.values[0] - mean)
        means.append(mean)
        errors.append(np.sqrt(squares / ((num_draws - 1) * num_draws)))

    visit_layers(model, record, visit, layers=layers)
    return Draws(np.stack(means).astype(np.float32), np.stack(errors).astype(np.float32))


def _drawn_modules(operation: torch.nn.Module) -> list[RandomFeatureMap | Hash]:
    modules = [module for module in operation.modules() if isinstance(module, RandomFeatureMap | Hash)]
    return [module for module in modules if not (isinstance(module, RandomFeatureMap) and module.is_unprojected)]
