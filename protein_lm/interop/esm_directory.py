"""ESM-2 on disk in any of its forms, and Hugging Face's directories of it.

Such a directory has config.json and weights, in one file or several, as safetensors or torch files.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from protein_lm.alphabet import VOCABULARY_SIZE
from protein_lm.checkpoint.config_file import CONFIG
from protein_lm.checkpoint.foreign import is_transformers, part_of_folder, plain_file, read_json
from protein_lm.checkpoint.tensor_files import load_tensors
from protein_lm.errors import ModelError, named, quoted
from protein_lm.interop.esm2 import (
    HUGGING_FACE,
    Converted,
    Shape,
    as_weights,
    build,
    check_alphabet,
    unwrapped,
    without_other_heads,
)
from protein_lm.interop.fair_esm import read_fair_esm, unpickle

VOCABULARY = "vocab.txt"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_UNUSED = ("embeddings.position_ids", "embeddings.position_embeddings.")
"""Buffers and learned positions that libraries store but ESM-2 with rotary positions does not use."""
_LARGEST_VOCABULARY = 2**16
"""Bytes."""


def is_file_of_others(path: Path) -> bool:
    """Whether `path` is a file or a directory that another library may have written, not a model directory of ours."""
    return path.is_file() or is_transformers(path)


def read_esm2(path: Path) -> Converted:
    """Read the model in a fair-esm checkpoint or a Hugging Face directory.

    Raises:
        ModelError: as `read_fair_esm` and `read_esm_directory`.
    """
    if not path.is_file():
        return read_esm_directory(path)
    if (part := part_of_folder(path)) is not None:
        raise ModelError(part)
    return read_fair_esm(path)


def read_esm_directory(path: Path) -> Converted:
    """Read the model in a Hugging Face directory. Heads other than ESM-2's own are left out, with a remark.

    Raises:
        ModelError: not ESM-2, a damaged or missing file, or weights that are missing or do not fit.
    """
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: neither a checkpoint of fair-esm nor a Hugging Face directory")
    shape = _shape(config, path)
    if (path / VOCABULARY).is_file():
        with (path / VOCABULARY).open("rb") as file:
            check_alphabet(file.read(_LARGEST_VOCABULARY).decode("utf-8", "replace").split(), str(path / VOCABULARY))
    elif isinstance(words := config.get("vocab_list"), list) and words:
        check_alphabet(words, str(path / CONFIG))
    stored = unwrapped(_weights(path), str(path))
    used = {name: tensor for name, tensor in stored.items() if not name.startswith(_UNUSED)}
    kept, remarks = without_other_heads(used)
    converted = build(kept, HUGGING_FACE, shape, str(path))
    return Converted(converted.model, [*converted.remarks, *remarks])


def _shape(config: dict[str, Any], path: Path) -> Shape:
    if config.get("model_type") != "esm":
        raise ModelError(
            f"{path}: a model of type {quoted(config.get('model_type'))}, not esm; only ESM-2 can be converted"
        )
    expected = {
        "position_embedding_type": ("rotary", "absolute"),
        "emb_layer_norm_before": (False, False),
        "is_folding_model": (False, False),
        "layer_norm_eps": (1e-5, 1e-12),
        "hidden_act": ("gelu", "gelu"),
        "vocab_size": (VOCABULARY_SIZE, None),
    }
    for name, (of_esm2, default) in expected.items():
        if (found := config.get(name, default)) != of_esm2 and (found or of_esm2):
            raise ModelError(
                f"{path / CONFIG}: {name} is {quoted(found)}, ESM-2 has {of_esm2!r}; only ESM-2 can be converted"
            )
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    if missing := [name for name in names if type(config.get(name)) is not int]:
        raise ModelError(f"{path / CONFIG}: {missing[0]} is missing")
    return Shape(*(config[name] for name in names), token_dropout=bool(config.get("token_dropout", False)))


def _weights(path: Path) -> dict[str, Tensor]:
    for name in _WEIGHTS:
        if (path / name).exists():
            return _read(path / name)
        index = path / f"{name}.index.json"
        if index.exists():
            return _read_shards(path, index)
    raise ModelError(f"{path}: has no weights; expected {' or '.join(_WEIGHTS)}")


def _read_shards(path: Path, index: Path) -> dict[str, Tensor]:
    """Read the weights of several files, which must be exactly those that an index lists."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{index}: damaged, its weight_map does not say which file a weight is in")
    names: dict[str, set[str]] = {}
    for weight, file in files.items():
        names.setdefault(plain_file(path, file).name, set()).add(weight)
    found: dict[str, Tensor] = {}
    for file, expected in sorted(names.items()):
        tensors = _read(path / file)
        if differing := sorted(expected ^ tensors.keys()):
            verb = "lacks" if differing[0] in expected else "has"
            raise ModelError(f"{path / file}: {verb} weight {named(differing[0])}, other than {index.name} says")
        found |= tensors
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no plain file of weights")
    return load_tensors(path) if path.suffix == ".safetensors" else as_weights(unpickle(path), str(path))
