"""Model directories (config.json, model.safetensors, README.md) and training states, without pickle.

A run directory holds `best` and `last`, both model directories; `last` has the training state beside it, and so do the
`step-N` of earlier steps. What a run writes has the checksums of its files with it.

A model that was trained on top of a frozen one holds what was trained, `adapters.safetensors` or `head.safetensors`, and its
config.json says where the frozen one lies (`base`). It opens like any other: adapters are added to the weights of the base.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from protein_lm import __version__, alphabet
from protein_lm.checkpoint import foreign
from protein_lm.checkpoint.base_model import WEIGHTS, Base
from protein_lm.checkpoint.card import model_card
from protein_lm.checkpoint.hub import HubModel, is_hub_name, push
from protein_lm.checkpoint.tensor_files import check_fit, check_floating, load_tensors, read_headers, save_tensors
from protein_lm.config import HeadConfig, ModelConfig
from protein_lm.errors import ConfigError, ModelError, named, one_line, quoted
from protein_lm.files.output import checksum, new_directory
from protein_lm.files.plain_files import check_plain, is_plain_name, read_json
from protein_lm.files.settings import parse
from protein_lm.model.adapters import adapter_weights, merge
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import PredictionHead, Predictor
from protein_lm.model.sizes import without_weights

FORMAT_VERSION = 2
"""Version of config.json that is written: options of attention stand with their kind."""
READABLE_VERSIONS = (1, FORMAT_VERSION)
MODEL_TYPE = "protein_lm"
"""How other libraries of the Hub tell our config.json from others."""
CONFIG, CARD = "config.json", "README.md"
ADAPTERS, HEAD = "adapters.safetensors", "head.safetensors"
STATE_FACTS, STATE_TENSORS = "training_state.json", "training_state.safetensors"
CHECKSUMS = "checksums.json"
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
        folder: where to write, or beside where it will be in the end.
        facts: about training, for config and card.
        base: the model directory whose weights `model` has, but for its adapters.
        head: what predicts labels from the model's hidden states.
        tensors: what `model_tensors` says of these three, if the model itself holds no more than shards of it.
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


def model_tensors(
    model: ProteinLM, *, base: Base | None = None, head: PredictionHead | None = None
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model directory, by file and name; arguments as those of `write_model`."""
    files: dict[str, dict[str, Tensor]] = {}
    if base is None:
        files[WEIGHTS] = model.state_dict()
    elif base.adapters is not None:
        files[ADAPTERS] = dict(adapter_weights(model))
    if head is not None:
        files[HEAD] = head.state_dict()
    return files


def find_model(name: str) -> Path:
    """The model directory behind `name`: a model directory itself, or a run directory, whose best model it is.

    A name such as org/model or org/model@revision, where no such path exists, is a model on the Hub: it is fetched into the
    Hub's cache, unless it is there already.

    Raises:
        ModelError: nothing of the kind there.
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
    """The folder of a model on the Hub; its weights are fetched only if its config.json is that of a model that we read."""
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
    """Put a model on the Hub, whole or not at all; the address of the commit.

    Args:
        name: a model directory, or a run directory, whose best model is taken.
        repository: org/model; made if it is not there.
        private: whether a new repository is for those only whom its owner lets in.

    Raises:
        ModelError: no such model, adapters that stand on another one, or the Hub does not take it.
    """
    path = find_model(name)
    if "base" in read_facts(path):
        raise ModelError(
            f"{path}: stands on a model that stays here; put a merged one on the Hub, made with: protein-lm convert "
            f"{name} -o DIR --merge"
        )
    _open(read_config(path), path)
    return push(path, SHARED, repository, private=private)


def read_facts(path: Path) -> dict[str, Any]:
    """The content of config.json, its format checked.

    Raises:
        ModelError: damaged, of another format version or another alphabet.
    """
    try:
        content = read_json(path / CONFIG)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: incomplete model directory, {CONFIG} is missing") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / CONFIG}: damaged, not valid JSON ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is None:
        raise ModelError(f"{path / CONFIG}: not the config.json of a protein_lm model, it has no format_version")
    if version not in READABLE_VERSIONS:
        raise ModelError(
            f"{path / CONFIG}: format version {quoted(version)}, this program reads 1 to {FORMAT_VERSION}; "
            f"use the version of protein_lm that wrote it, or a newer one"
        )
    if content.get("alphabet") != list(alphabet.TOKENS):
        raise ModelError(f"{path / CONFIG}: its alphabet is not the 33 tokens of this program")
    return content


def read_config(path: Path) -> ModelConfig:
    """The model's part of config.json.

    Raises:
        ModelError: as `read_facts`, or settings that make no model.
    """
    try:
        return parse(ModelConfig, read_facts(path).get("model"), str(path / CONFIG))
    except ConfigError as error:
        raise ModelError(str(error)) from error


def load_model(name: str | Path, *, device: str = "cpu") -> ProteinLM:
    """Open a model for use (dropout off).

    Args:
        name: a model directory, a run directory, whose best model is taken, or a model on the Hub, see `find_model`.
        device: where to put the weights: cpu, cuda, mps, or auto.

    Raises:
        ModelError: missing, incomplete, damaged, of another format version, or weights that do not fit the config.
    """
    path = find_model(str(name))
    config = read_config(path)
    if (path / CHECKSUMS).exists():
        check_files(path)
    model = _open(config, path)
    model = model.to(choose_device(device)).eval()
    if model.is_causal and model.device.type == "cpu":
        model.arrange_for_decoding()
    return model


def _open(config: ModelConfig, path: Path) -> ProteinLM:
    """The model of a directory; nothing is made before its settings fit the weights that are there."""
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


def load_predictor(name: str | Path, *, device: str = "cpu") -> Predictor:
    """Open a model with its head, as `load_model` does one without.

    Raises:
        ModelError: as `load_model`, or the model has no head.
    """
    path = find_model(str(name))
    if "head" not in read_facts(path):
        raise ModelError(f"{name}: a model without a head predicts no labels; make one with: protein-lm finetune")
    model = load_model(path, device=device)
    return Predictor(model, read_head(path, model.config.width).to(model.device)).eval()


def read_head(path: Path, width: int) -> PredictionHead:
    """The head in a model directory, for hidden states of a width.

    Raises:
        ModelError: damaged, or it does not fit.
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


def fingerprint(model: ProteinLM) -> str:
    """XXH3-128 of configuration, weights and buffers, in hexadecimal digits: equal for models that compute the same."""
    digest = xxhash.xxh3_128(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device behind `name`; `auto` is the first accelerator there is, or the CPU.

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


def load_weights(model: ProteinLM, path: Path) -> None:
    """Fill `model` with the weights of a model directory, those of its base with its adapters added if it has one.

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
    """Fill the adapters of `model` with those of a model directory, to train them on.

    Raises:
        ModelError: missing or damaged file, or adapters that do not fit.
    """
    expected = adapter_weights(model)
    check_fit(expected, read_headers(path / ADAPTERS), path / ADAPTERS)
    tensors = load_tensors(path / ADAPTERS)
    with torch.no_grad():
        for name, weight in expected.items():
            weight.copy_(tensors[name])


def write_checksums(folder: Path) -> None:
    """Record the checksums of all files in a folder, but for the card, which is a person's to edit."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != CARD}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_files(path: Path) -> None:
    """Compare a folder's files with the checksums that `write_checksums` recorded.

    Raises:
        ModelError: a file, or the record itself, is missing or damaged; the first one is named.
    """
    try:
        sums = dict(read_json(path / CHECKSUMS))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: incomplete, {CHECKSUMS} is missing") from error
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path / CHECKSUMS}: damaged ({error})") from error
    for name, expected in sums.items():
        if not is_plain_name(name):
            raise ModelError(f"{path / CHECKSUMS}: damaged, it names {quoted(name)}, which is no file of this folder")
        try:
            check_plain(path / name)
            found = checksum(path / name)
        except OSError as error:
            raise ModelError(f"{path}: incomplete, {name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise ModelError(f"{path / name}: damaged, its checksum is {found} instead of {quoted(expected)}")


def write_training_state(folder: Path, facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write what a run needs to go on: JSON facts (step, settings) and tensors (moments, random states)."""
    (folder / STATE_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    save_tensors(tensors, folder / STATE_TENSORS)


def read_training_facts(path: Path) -> dict[str, Any]:
    """The facts that `write_training_state` wrote.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        return dict(read_json(path / STATE_FACTS))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path / STATE_FACTS}: no usable training state to go on from ({error})") from error


def read_training_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors that `write_training_state` wrote.

    Raises:
        ModelError: missing or damaged.
    """
    return read_training_facts(path), load_tensors(path / STATE_TENSORS)


def describe(name: str) -> str:
    """What a model directory holds, as lines for a person.

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
