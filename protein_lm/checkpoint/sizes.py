"""The size of a model, known from its configuration before anything is allocated."""

import os

import torch

from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM

_GIB = 2**30


def without_weights(config: ModelConfig) -> ProteinLM:
    """Return a model whose weights have shapes alone.

    Raises:
        ConfigError: a weight would have more numbers than a computer can count.
    """
    try:
        with torch.device("meta"):
            return ProteinLM(config)
    except RuntimeError as error:
        raise ConfigError(f"no model can have these sizes: {error}") from error


def check_room(config: ModelConfig) -> None:
    """Refuse a model whose weights alone are larger than the memory of this machine, if the system tells its size.

    Raises:
        ConfigError: it is too large.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    # Matrices of the blocks first: building a model of very many blocks takes time, even without weights.
    needed = 4 * config.num_layers * config.width * (4 * config.width + 2 * config.feedforward_width)
    if needed <= memory:
        needed = sum(tensor.nbytes for tensor in without_weights(config).state_dict().values())
    if needed > memory:
        raise ConfigError(
            f"the weights of such a model take {needed / _GIB:,.1f} GiB, and this machine has {memory / _GIB:,.1f}; "
            "make model.num_layers, model.width or the largest of the others smaller"
        )
