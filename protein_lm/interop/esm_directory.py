"""Hugging Face's directories of ESM-2: config.json and weights, in one file or several, as safetensors or torch files."""

from pathlib import Path
from typing import Any

from torch import Tensor

from protein_lm.alphabet import VOCABULARY_SIZE
from protein_lm.errors import ModelError, quoted
from protein_lm.interop.esm2 import HUGGING_FACE, Converted, Shape, build, check_alphabet
from protein_lm.interop.fair_esm import unpickle
from protein_lm.plain_files import is_plain_name, read_json
from protein_lm.tensor_files import load_tensors

CONFIG, VOCABULARY = "config.json", "vocab.txt"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_UNUSED = ("embeddings.position_ids", "embeddings.position_embeddings.")
"""Buffers and learned positions that libraries store beside rotary ones."""
_OTHER_HEADS = ("classifier.", "pooler.", "qa_outputs.")


def is_foreign(path: Path) -> bool:
    """Whether a folder has a Hugging Face config.json, and not one of ours."""
    try:
        config = read_json(path / CONFIG)
    except (OSError, ValueError):
        return False
    return (
        isinstance(config, dict)
        and "format_version" not in config
        and ("model_type" in config or "architectures" in config)
    )


def read_esm_directory(path: Path) -> Converted:
    """The model in a Hugging Face directory; heads other than ESM-2's own are left out, and named.

    Raises:
        ModelError: not ESM-2, a damaged or missing file, or weights that are missing or do not fit.
    """
    if not is_foreign(path):
        raise ModelError(f"{path}: neither a checkpoint of fair-esm nor a Hugging Face directory")
    config = read_json(path / CONFIG)
    shape = _shape(config, path)
    if (path / VOCABULARY).exists():
        check_alphabet((path / VOCABULARY).read_text(encoding="utf-8").split(), str(path / VOCABULARY))
    elif config.get("vocab_list"):
        check_alphabet(list(config["vocab_list"]), str(path / CONFIG))
    stored = {name.removeprefix("esm."): tensor for name, tensor in _weights(path).items()}
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith((*_UNUSED, *_OTHER_HEADS))}
    converted = build(kept, HUGGING_FACE, shape, str(path))
    heads = sorted({name.partition(".")[0] for name in stored if name.startswith(_OTHER_HEADS)})
    return Converted(converted.model, [*converted.remarks, *(f"its {head} was left out" for head in heads)])


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
    if missing := [name for name in names if not isinstance(config.get(name), int)]:
        raise ModelError(f"{path / CONFIG}: {missing[0]} is missing")
    return Shape(*(config[name] for name in names), token_dropout=bool(config.get("token_dropout", False)))


def _weights(path: Path) -> dict[str, Tensor]:
    for name in _WEIGHTS:
        if (path / name).exists():
            return _read(path / name)
        index = path / f"{name}.index.json"
        if index.exists():
            try:
                files = sorted(set(read_json(index)["weight_map"].values()))
                if not all(map(is_plain_name, files)):
                    raise ValueError("it names files of other folders")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index}: damaged ({error})") from error
            return {key: tensor for file in files for key, tensor in _read(path / file).items()}
    raise ModelError(f"{path}: has no weights; expected {' or '.join(_WEIGHTS)}")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ModelError(f"{path.parent}: incomplete, {path.name} is missing")
    return load_tensors(path) if path.suffix == ".safetensors" else unpickle(path)
