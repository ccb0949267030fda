"""Weights of models, adapters and heads: from their files and to them."""

from pathlib import Path

import torch
import xxhash
from torch import Tensor

from protein_lm.checkpoint.base_model import WEIGHTS, Base
from protein_lm.checkpoint.config_file import CONFIG, read_facts
from protein_lm.checkpoint.sizes import without_weights
from protein_lm.checkpoint.tensor_files import check_fit, check_floating, load_tensors, read_headers
from protein_lm.config import HeadConfig, ModelConfig
from protein_lm.errors import ConfigError, ModelError
from protein_lm.files.settings import parse
from protein_lm.model.adapters import adapter_weights, merge
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import PredictionHead

ADAPTERS, HEAD = "adapters.safetensors", "head.safetensors"


def model_tensors(
    model: ProteinLM, *, base: Base | None = None, head: PredictionHead | None = None
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model directory, by file and name; arguments as in `directory.write_model`."""
    files: dict[str, dict[str, Tensor]] = {}
    if base is None:
        files[WEIGHTS] = model.state_dict()
    elif base.adapters is not None:
        files[ADAPTERS] = dict(adapter_weights(model))
    if head is not None:
        files[HEAD] = head.state_dict()
    return files


def open_model(config: ModelConfig, path: Path) -> ProteinLM:
    """Make the model of a directory, after checking that its settings fit the weights that are there."""
    facts = read_facts(path).get("base")
    weights = (path if facts is None else Base.read(path, facts).path) / WEIGHTS
    headers = read_headers(weights)
    blocks = {name.split(".")[1] for name in headers if name.startswith("blocks.")}
    if len(blocks) < config.num_layers:  # first, since very many blocks take their time
        raise ModelError(
            f"{weights}: weight blocks.{len(blocks)}.* is missing, the config asks for {config.num_layers:,} blocks"
        )
    try:
        check_fit(without_weights(config).state_dict(), headers, weights)
    except ConfigError as error:
        raise ModelError(f"{path / CONFIG}: {error}") from error
    model = ProteinLM(config)
    load_weights(model, path)
    return model


def load_weights(model: ProteinLM, path: Path) -> None:
    """Fill `model` with the weights of a model directory. If it has a base, these are the base's with the adapters added.

    Raises:
        ModelError: missing or damaged file, weights that do not fit, or a base that is gone or changed.
    """
    facts = read_facts(path).get("base")
    base = None if facts is None else Base.read(path, facts)
    weights = path / WEIGHTS if base is None else base.path / WEIGHTS
    check_fit(model.state_dict(), read_headers(weights), weights)
    tensors = load_tensors(weights)
    if base is not None and base.adapters is not None:
        check_floating(read_headers(path / ADAPTERS), path / ADAPTERS)
        try:
            tensors = merge(tensors, load_tensors(path / ADAPTERS), base.adapters)
        except (KeyError, RuntimeError, ZeroDivisionError) as error:
            raise ModelError(f"{path / ADAPTERS}: does not fit the model {base.path} ({error})") from error
    model.load_state_dict(tensors)


def load_adapters(model: ProteinLM, path: Path) -> None:
    """Fill the adapters of `model` with those of a model directory, to train them further.

    Raises:
        ModelError: missing or damaged file, or adapters that do not fit.
    """
    expected = adapter_weights(model)
    check_fit(expected, read_headers(path / ADAPTERS), path / ADAPTERS)
    tensors = load_tensors(path / ADAPTERS)
    with torch.no_grad():
        for name, weight in expected.items():
            weight.copy_(tensors[name])


def read_head(path: Path, width: int) -> PredictionHead:
    """Read the head in a model directory, for hidden states of a width.

    Raises:
        ModelError: it is damaged, or does not fit.
    """
    headers = read_headers(path / HEAD)
    try:
        facts = dict(read_facts(path)["head"])
        classes = facts.pop("classes")
        config = parse(HeadConfig, facts, str(path / CONFIG))
        if not (isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)):
            raise TypeError("its classes are no names")
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelError(f"{path / CONFIG}: damaged, its head cannot be read ({error})") from error
    with torch.device("meta"):
        expected = PredictionHead(config, width, tuple(classes)).state_dict()
    check_fit(expected, headers, path / HEAD)
    head = PredictionHead(config, width, tuple(classes))
    head.load_state_dict(load_tensors(path / HEAD))
    return head


def model_checksum(model: ProteinLM, *, with_settings: bool = True) -> str:
    """XXH3-128 of weights and buffers, in hexadecimal digits.

    With the settings it is the same for models that compute the same; without them, for models with the same weights.
    """
    digest = xxhash.xxh3_128(model.config.model_dump_json().encode() if with_settings else b"")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
