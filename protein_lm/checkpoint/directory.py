"""Model directories: config.json, model.safetensors and README.md, without pickle.

A run directory holds `best` and `last`, both model directories. `last` has the training state next to it, and so do the
`step-N` of earlier steps. What a run writes comes with the checksums of its files.

A model trained on top of a frozen one holds only what was trained: `adapters.safetensors` or `head.safetensors`. Its
config.json says where the frozen model lies (`base`). It opens like any other: adapters are added to the base's weights.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protein_lm import __version__, alphabet
from protein_lm.checkpoint import foreign
from protein_lm.checkpoint.base_model import WEIGHTS, Base
from protein_lm.checkpoint.card import CARD, model_card
from protein_lm.checkpoint.checksums import CHECKSUMS, check_files
from protein_lm.checkpoint.config_file import CONFIG, FORMAT_VERSION, MODEL_TYPE, read_config, read_facts
from protein_lm.checkpoint.hub import HubModel, is_hub_name, push
from protein_lm.checkpoint.tensor_files import save_tensors
from protein_lm.checkpoint.weights import HEAD, model_tensors, open_model, read_head
from protein_lm.errors import ConfigError, ModelError, named, one_line
from protein_lm.files.output import new_directory
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import PredictionHead, Predictor
from protein_lm.model.pretrained import ModelDirectories, Pretrained

SHARED = (CONFIG, WEIGHTS, HEAD, CARD)
"""Files of a model directory that go to the Hub and come from it."""
BEST, LAST = "best", "last"


def save_model(
    model: ProteinLM, path: Path, *, facts: dict[str, Any] | None = None, head: PredictionHead | None = None
) -> None:
    """Write a model directory, whole or not at all.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    with new_directory(path) as folder:
        write_model(model, folder, facts=facts or {}, head=head)


def write_model(
    model: ProteinLM,
    folder: Path,
    *,
    facts: dict[str, Any],
    base: Base | None = None,
    head: PredictionHead | None = None,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write the files of a model directory into an existing folder.

    Args:
        model: any model.
        folder: where to write; the directory may get its final name later.
        facts: about training, for config and card.
        base: the model directory that the weights come from, if `model` adds only adapters to them.
        head: predicts labels from the model's hidden states.
        tensors: the result of `model_tensors`, needed where this process holds only shards of the model.
    """
    config = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "protein_lm_version": __version__,
        "alphabet": list(alphabet.TOKENS),
        "model": model.config.model_dump(mode="json"),
        **({} if base is None else {"base": base.facts(folder)}),
        **({} if head is None else {"head": head.config.model_dump(mode="json") | {"classes": head.classes}}),
        "training": facts,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, content in (model_tensors(model, base=base, head=head) if tensors is None else tensors).items():
        save_tensors(content, folder / name)
    (folder / CARD).write_text(model_card(model, facts), encoding="utf-8")


def find_model(name: str) -> Path:
    """The model directory behind `name`: the directory itself, or the best model of a run directory.

    If no such path exists, org/model or org/model@revision is a model on the Hub. It is fetched into the Hub's cache, unless
    it is there already.

    Raises:
        ModelError: there is no such model.
    """
    path = foreign.as_path(name)
    if (path / CONFIG).is_file() and not foreign.is_transformers(path):
        return path
    if (path / BEST / CONFIG).is_file():
        return path / BEST
    if (known := foreign.describe(name)) is not None:
        raise ModelError(known)
    if not path.exists():
        if is_hub_name(name):
            return _fetch(name)
        raise ModelError(f"{name}: no such model directory or run")
    if not path.is_dir():
        raise ModelError(f"{name}: not a model directory but a file; give the folder that holds {CONFIG}")
    raise ModelError(f"{name}: incomplete model directory, {CONFIG} is missing")


def _fetch(name: str) -> Path:
    """The folder of a model on the Hub. Its weights are fetched only if its config.json is one that this program reads."""
    found = HubModel.find(name)
    folder = found.fetch([CONFIG])
    try:
        facts = read_facts(folder)
    except ModelError as error:
        raise ModelError(
            f"{name}, on the Hub, cannot be used: {foreign.describe_on_hub(name, folder) or error}"
        ) from error
    if "base" in facts:
        raise ModelError(
            f"{name}: holds adapters or a head of a model that is not on the Hub; ask for the merged model"
        )
    if found.commit is None:
        print(f"{name}: the Hub cannot be reached; using commit {folder.name} of its cache", file=sys.stderr)
    return found.fetch(SHARED)


def push_model(name: str, repository: str, *, private: bool = False) -> str:
    """Put a model on the Hub, whole or not at all; returns the address of the commit.

    Args:
        name: a model directory, or a run directory for its best model.
        repository: org/model; made if it is missing.
        private: whether a new repository is visible only to those whom its owner lets in.

    Raises:
        ModelError: no such model, adapters or a head that need a base model, or the Hub does not take it.
    """
    path = find_model(name)
    if "base" in read_facts(path):
        raise ModelError(
            f"{path}: stands on a model that stays here; put a merged one on the Hub, made with: protein-lm convert "
            f"{name} -o DIR --merge"
        )
    open_model(read_config(path), path)
    return push(path, SHARED, repository, private=private)


def load_model(name: str | Path, *, device: str = "cpu") -> ProteinLM:
    """Open a model for use (dropout off).

    Args:
        name: a model directory, a run directory for its best model, or a model on the Hub, as in `find_model`.
        device: where to put the weights: cpu, cuda, mps, or auto.

    Raises:
        ModelError: missing, incomplete, damaged, of another format version, or weights that do not fit the config.
    """
    path = find_model(str(name))
    config = read_config(path)
    if (path / CHECKSUMS).exists():
        check_files(path)
    model = open_model(config, path)
    model = model.to(choose_device(device)).eval()
    if model.is_causal and model.device.type == "cpu":
        model.arrange_for_decoding()
    return model


def load_predictor(name: str | Path, *, device: str = "cpu") -> Predictor:
    """Open a model together with its head, as `load_model` opens a model.

    Raises:
        ModelError: as `load_model`, or the model has no head.
    """
    path = find_model(str(name))
    if "head" not in read_facts(path):
        raise ModelError(f"{name}: a model without a head predicts no labels; make one with: protein-lm finetune")
    model = load_model(path, device=device)
    return Predictor(model, read_head(path, model.config.width).to(model.device)).eval()


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first accelerator, or the CPU if there is none.

    Raises:
        ConfigError: torch does not know the device or cannot use it here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used on this machine; choose cpu or auto") from error
    return device


def describe(name: str) -> str:
    """Describe a model directory, in lines for a person.

    Raises:
        ModelError: as `load_model`.
    """
    path = find_model(name)
    model, facts = load_model(path), read_facts(path)
    rows = {
        "directory": path,
        **model.config.model_dump(mode="json"),
        "weights": f"{model.num_parameters:,}",
        "weights of kernels": f"{model.num_kernel_parameters:,}",
        **_part(facts, "head"),
        **{f"base {key}": value for key, value in _part(facts, "base").items()},
        "written by": f"protein_lm {facts.get('protein_lm_version')}",
        **_part(facts, "training"),
    }
    return "\n".join(f"{named(key).replace('_', ' '):<28}{one_line(str(value))}" for key, value in rows.items())


def _part(facts: dict[str, Any], name: str) -> dict[str, Any]:
    part = facts.get(name)
    return part if isinstance(part, dict) else {}


Pretrained.directories = ModelDirectories(load_model, save_model, push_model)
