"""fair-esm's checkpoints of ESM-2: a `.pt` of settings and weights, and one of the contact regression next to it.

Trainers save weights without settings, under names of fair-esm or of transformers. The settings are then inferred.

These files are pickles. Only tables of weights are read from them (torch's `weights_only`), and the plain namespace that
holds fair-esm's settings. A file that asks for anything else is refused before any of it runs.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protein_lm.errors import ModelError, quoted
from protein_lm.files.plain_files import check_plain
from protein_lm.interop.esm2 import (
    FAIR_ESM,
    HUGGING_FACE,
    Converted,
    Shape,
    as_mapping,
    as_weights,
    build,
    shape_of,
    unwrapped,
    without_other_heads,
)

REGRESSION = "-contact-regression"
"""Suffix of a model's name in the file name of its contact head."""
_NO_WEIGHTS = "damaged, or no file of torch's weights; nothing of it was executed"
_TABLES = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers such as Lightning save weights."""
_PREFIX = re.compile(r"^encoder\.(sentence_encoder\.)?")


def read_fair_esm(path: Path) -> Converted:
    """Read the model in a checkpoint of fair-esm, with its contact head if there is one, or in a trainer's checkpoint.

    Raises:
        ModelError: the file is damaged, holds more than settings and weights, or is not ESM-2; or weights are missing or do
            not fit.
    """
    content = unpickle(path)
    if isinstance(content, dict) and "args" in content:
        raise ModelError(f"{path}: a checkpoint of ESM-1 or of an MSA Transformer; only ESM-2 can be converted")
    if not (isinstance(content, dict) and isinstance(content.get("cfg"), dict) and "model" in content):
        return _read_bare_weights(content, path)
    shape = _shape(as_mapping(content["cfg"].get("model"), f"{path}: the settings cfg.model"), path)
    tensors = _named_as_fair_esm(as_weights(content["model"], f"{path}: its part model"), path)
    return build(tensors | _contact_head(path), FAIR_ESM, shape, str(path))


def _read_bare_weights(content: Any, path: Path) -> Converted:
    """Read weights without settings, which are the content of a file or a part of it."""
    parts = [content, *(content.get(name) for name in _TABLES)] if isinstance(content, dict) else []
    table = next((part for part in parts if _is_table(part)), None)
    if table is None:
        raise ModelError(
            f"{path}: no checkpoint of ESM-2 in fair-esm's form, a dictionary of cfg (settings) and model (weights), and no "
            "table of weights either"
        )
    tensors = unwrapped(as_weights(table, str(path)), str(path))
    names = HUGGING_FACE
    if f"{names.embedding}.weight" not in tensors:
        tensors, names = _named_as_fair_esm(tensors, path) | _contact_head(path), FAIR_ESM
    tensors, remarks = without_other_heads(tensors)
    converted = build(tensors, names, shape_of(tensors, names, str(path)), str(path))
    told = "its settings were told by its weights, with token dropout as ESM-2 has it"
    return Converted(converted.model, [told, *converted.remarks, *remarks])


def _is_table(part: Any) -> bool:
    return isinstance(part, dict) and bool(part) and all(isinstance(tensor, Tensor) for tensor in part.values())


def _named_as_fair_esm(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    return {_PREFIX.sub("", name): tensor for name, tensor in unwrapped(tensors, str(path)).items()}


def contact_file(path: Path) -> Path:
    """The file next to a checkpoint in which fair-esm keeps its contact head."""
    return path.with_name(f"{path.stem}{REGRESSION}.pt")


def _contact_head(path: Path) -> dict[str, Tensor]:
    """The contact head in the file next to a checkpoint, if there is one."""
    file = contact_file(path)
    if not file.exists():
        return {}
    content = unpickle(file)
    weights = content.get("model") if isinstance(content, dict) else None
    return _named_as_fair_esm(as_weights(weights, f"{file}: its part model"), file)


def unpickle(path: Path) -> Any:
    """Read a torch file without executing any of it.

    Raises:
        ModelError: the pickle asks for more than weights and settings, or the file is damaged.
    """
    try:
        check_plain(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other kinds of pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{path}: not only weights, it asks to run {asked[1]}; refused, nothing of it was executed; save the weights "
                "alone, with torch.save(model.state_dict(), FILE)"
            ) from error
        raise ModelError(f"{path}: {_NO_WEIGHTS}") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: {_NO_WEIGHTS}") from error


def _shape(settings: dict[str, Any], path: Path) -> Shape:
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "token_dropout")
    try:
        num_layers, width, num_heads, token_dropout = (settings[name] for name in names)
    except KeyError as error:
        raise ModelError(
            f"{path}: its settings lack {error.args[0]}; no checkpoint of ESM-2 in fair-esm's form"
        ) from error
    if not isinstance(width, int):
        raise ModelError(f"{path}: its encoder_embed_dim is {quoted(width)}; expected a whole number")
    return Shape(num_layers, width, num_heads, 4 * width, token_dropout)
