"""Embeddings: hidden states of proteins."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.batches.packed_batches import fill, pack, tokens_of
from protein_lm.errors import ConfigError, NumericalError
from protein_lm.model.language_model import ProteinLM


def embed(
    model: ProteinLM,
    sequences: Sequence[NDArray[np.uint8]],
    *,
    layers: Sequence[int] | None = None,
    tokens_per_batch: int = 2048,
) -> Iterator[Tensor]:
    """The embedding (N, K, D) of each of `sequences` (token ids of residues), in order; float32, on the model's device.

    The N layers are those asked for, in their order; the last one if none are. Layer 0 is the input of the first block, layer
    n the output of block n, and the last layer has the final norm, as in ESM. The K residues are without <cls> and <eos>. The
    mean over K is the embedding of the protein. A sequence's embedding does not depend on its batch.

    Raises:
        ConfigError: the model does not have such a layer.
        NumericalError: the model gives NaN or infinity.
    """
    layers = chosen_layers(model, layers)
    for members in fill(tokens_of(sequences), tokens_per_batch):
        tokens, packing = pack([sequences[i] for i in members])
        with torch.inference_mode():
            states = model.layer_states(tokens.to(model.device), layers=layers, packing=packing)
            rows = torch.cat([states[layer] for layer in layers])
        if not rows.isfinite().all():
            raise NumericalError(
                "the model gives NaN or infinity; its weights come from a run that diverged: use an earlier checkpoint"
            )
        for start, end in zip(packing.boundaries, packing.boundaries[1:], strict=False):
            yield rows[:, start + 1 : end - 1]


def chosen_layers(model: ProteinLM, layers: Sequence[int] | None) -> list[int]:
    """The layers asked for; the last one if none are.

    Raises:
        ConfigError: the model does not have such a layer, or one is named twice.
    """
    last = model.config.num_layers
    if not layers:
        return [last]
    for number, layer in enumerate(layers):
        if not 0 <= layer <= last:
            raise ConfigError(f"layer {layer} does not exist: layers run from 0 (embedding) to {last} (the last)")
        if layer in layers[:number]:
            raise ConfigError(f"layer {layer} is named twice; name it once")
    return list(layers)
