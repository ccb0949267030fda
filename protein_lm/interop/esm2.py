"""ESM-2's weights, under the names of fair-esm or of Hugging Face, made into a model of ours with exact attention.

Source: Lin et al. 2023 (ESM-2). Our alphabet is ESM's, so embeddings need no translation.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm import alphabet
from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError, ModelError, named, quoted
from protein_lm.files.settings import parse
from protein_lm.model.language_model import ProteinLM

WINDOW = 1024
"""Tokens of the longest sequences that ESM-2 was trained on."""
HEAD, CONTACTS = "lm_head.", "contact_head."
"""Prefixes of the names of the language-model head and of the contact head, in both libraries."""
FREQUENCIES = ".inv_freq"
"""Suffix of the names of rotary frequencies."""
_LARGEST_SIZE = 2**32
_WRAPPERS = frozenset(("module", "model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts of names that trainers add: DDP, FSDP and compile of torch, and modules of Lightning."""
_OTHER_HEADS = ("classifier.", "pooler.", "qa_outputs.")


class Converted(NamedTuple):
    """A model made of weights of another library."""

    model: ProteinLM
    remarks: list[str]
    """Parts that are missing or were left out, one line each."""


@dataclass(frozen=True)
class Shape:
    """The settings that determine names and sizes of the weights."""

    num_layers: int
    width: int
    num_heads: int
    feedforward_width: int
    token_dropout: bool


@dataclass(frozen=True)
class Names:
    """Names of a library for the parts of ESM-2. Parts of a layer follow after `layer`, formatted with its number."""

    embedding: str
    final_norm: str
    layer: str
    query_key_value: tuple[str, str, str]
    parts: Mapping[str, str]
    """Our name of a part of a block -> the library's."""


FAIR_ESM = Names(
    embedding="embed_tokens",
    final_norm="emb_layer_norm_after",
    layer="layers.{}",
    query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    parts={
        "attention_norm": "self_attn_layer_norm",
        "attention.output_projection": "self_attn.out_proj",
        "feedforward_norm": "final_layer_norm",
        "feedforward.input_projection": "fc1",
        "feedforward.output_projection": "fc2",
    },
)
HUGGING_FACE = Names(
    embedding="embeddings.word_embeddings",
    final_norm="encoder.emb_layer_norm_after",
    layer="encoder.layer.{}",
    query_key_value=("attention.self.query", "attention.self.key", "attention.self.value"),
    parts={
        "attention_norm": "attention.LayerNorm",
        "attention.output_projection": "attention.output.dense",
        "feedforward_norm": "LayerNorm",
        "feedforward.input_projection": "intermediate.dense",
        "feedforward.output_projection": "output.dense",
    },
)


def unwrapped(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights by name, without the parts of names that trainers add.

    Raises:
        ModelError: two weights then have the same name, or adapters of peft are not merged.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        if parts[:1] == ["base_model"] or any(part.startswith("lora_") for part in parts):
            raise ModelError(
                f"{where}: {named(name)} belongs to adapters of the library peft; merge them there (merge_and_unload), "
                "save the model, and convert that"
            )
        short = ".".join(itertools.dropwhile("esm".__eq__, parts))
        if short in found:
            raise ModelError(
                f"{where}: two weights are called {named(short)}; save the model alone, without copies of it"
            )
        found[short] = tensor
    return found


def without_other_heads(converted_from: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out heads that ESM-2 does not have; the other weights, and a remark on each head."""
    kept = {name: tensor for name, tensor in converted_from.items() if not name.startswith(_OTHER_HEADS)}
    heads = sorted({name.partition(".")[0] for name in converted_from if name not in kept})
    return kept, [f"its {head} was left out" for head in heads]


def shape_of(tensors: Mapping[str, Tensor], names: Names, where: str) -> Shape:
    """The settings, inferred from weights alone. Token dropout is taken to be on, as in every ESM-2.

    Raises:
        ModelError: a weight that is needed for this is missing.
    """
    first = names.layer.format(0)
    embedding = tensors.get(f"{names.embedding}.weight")
    inner = tensors.get(f"{first}.{names.parts['feedforward.input_projection']}.weight")
    if embedding is None or inner is None or embedding.ndim != 2 or inner.ndim != 2:
        raise ModelError(f"{where}: holds no weights of ESM-2 under the names of fair-esm or of transformers")
    before = names.layer.format("")
    layers = _Source(tensors, where).heads_of(before)
    frequencies = next((tensor for name, tensor in tensors.items() if name.endswith(FREQUENCIES)), None)
    regression = tensors.get(f"{CONTACTS}regression.weight")
    if frequencies is not None and frequencies.numel():
        num_heads = embedding.shape[1] // (2 * frequencies.numel())
    elif regression is not None:
        num_heads = regression.numel() // len(layers)
    else:
        raise ModelError(
            f"{where}: its weights do not tell how many heads the attention has; give fair-esm's own file with its settings, "
            "or a folder with config.json"
        )
    return Shape(len(layers), embedding.shape[1], num_heads, inner.shape[0], token_dropout=True)


def as_weights(content: Any, what: str) -> dict[str, Tensor]:
    """Check that `content` is a table of weights, each of which stores all of its numbers.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ModelError(f"{what} is no table of weights")
    for name, tensor in content.items():
        is_dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
        if not is_dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(
                f"{what}: {named(str(name))} does not hold all of its numbers; save the model's plain weights"
            )
    return {str(name): tensor for name, tensor in content.items()}


def build(tensors: Mapping[str, Tensor], names: Names, shape: Shape, where: str) -> Converted:
    """Make a model with these weights, in float32.

    Args:
        tensors: all weights by the library's names, without common prefixes.
        names: of the library.
        shape: of the model.
        where: file or folder, for errors.

    Raises:
        ModelError: a weight is missing, has another shape or is unknown, or weights that must be the same differ.
    """
    source = _Source(tensors, where)
    _check_sizes(source, names, shape)
    has_head, has_contacts = source.has(HEAD), source.has(CONTACTS)
    try:
        config = parse(
            ModelConfig,
            {
                "objective": "masked",
                "attention": "exact",
                "num_layers": shape.num_layers,
                "width": shape.width,
                "num_heads": shape.num_heads,
                "feedforward_width": shape.feedforward_width,
                "max_length": WINDOW,
                "token_dropout": shape.token_dropout,
                "stored_frequencies": source.has_frequencies(),
                "output_head": "dense" if has_head else "none",
                "contact_head": has_contacts,
            },
            where,
        )
    except ConfigError as error:
        raise ModelError(str(error)) from error
    with torch.device("meta"):  # no time and memory for initial weights, which are replaced below
        model = ProteinLM(config)
    weights = {}
    for name, expected in model.state_dict().items():
        if name == "rotary.inverse_frequencies":
            weights[name] = source.take_frequencies(tuple(expected.shape))
        elif ".attention.input_projection." in name:
            block, kind = name.removeprefix("blocks.").split(".")[0], name.rpartition(".")[2]
            part = (shape.width, *expected.shape[1:])
            prefix = names.layer.format(block)
            weights[name] = torch.cat([source.take(f"{prefix}.{each}.{kind}", part) for each in names.query_key_value])
        else:
            weights[name] = source.take(_their_name(name, names), tuple(expected.shape))
    for tied in (f"{HEAD}weight", f"{HEAD}decoder.weight"):
        if source.has(tied) and not torch.equal(source.take(tied, None), weights["embedding.weight"]):
            raise ModelError(
                f"{where}: {tied} is not the embedding, which ESM-2's head shares; such a model cannot be held"
            )
    source.check_empty()
    model.load_state_dict(weights, assign=True)
    remarks = []
    if not has_head:
        remarks.append("it has no language-model head: no logits and no scores, but hidden states and attention")
    if not has_contacts:
        remarks.append("it has no contact head")
    return Converted(model.eval(), remarks)


def _check_sizes(source: "_Source", names: Names, shape: Shape) -> None:
    """Compare the settings with the weights, before anything of the size in the settings is made."""
    inner, width = shape.feedforward_width, shape.width
    if not all(isinstance(size, int) for size in (shape.num_layers, inner, width)):
        return  # parsing the settings reports this
    if (largest := max(shape.num_layers, inner, width)) > _LARGEST_SIZE:
        raise ModelError(f"{source.where}: its settings ask for a size of {quoted(largest)}, which no model has")
    before = names.layer.format("")
    num_layers = len(source.heads_of(before))
    for layer in range(min(shape.num_layers, num_layers + 1)):
        source.check(f"{names.layer.format(layer)}.{names.parts['attention_norm']}.weight", (width,))
        source.check(
            f"{names.layer.format(layer)}.{names.parts['feedforward.input_projection']}.weight", (inner, width)
        )
    source.check(f"{names.embedding}.weight", (alphabet.VOCABULARY_SIZE, width))


def _their_name(name: str, names: Names) -> str:
    """A library's name for one of our weights."""
    part, _, kind = name.rpartition(".")
    if part.startswith("blocks."):
        _, block, inner = part.split(".", 2)
        return f"{names.layer.format(block)}.{names.parts[inner]}.{kind}"
    ours = {
        "embedding": names.embedding,
        "final_norm": names.final_norm,
        "output_transform.dense": f"{HEAD}dense",
        "output_transform.norm": f"{HEAD}layer_norm",
        "contact_head.regression": f"{CONTACTS}regression",
    }
    return f"{HEAD}bias" if name == "output_bias" else f"{ours[part]}.{kind}"


class _Source:
    """Weights, each of which is taken once."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._tensors, self.where = dict(tensors), where

    def has(self, prefix: str) -> bool:
        """Whether any name has this prefix."""
        return any(name.startswith(prefix) for name in self._tensors)

    def heads_of(self, prefix: str) -> set[str]:
        """Parts of names after a prefix, up to the next dot."""
        return {name.removeprefix(prefix).partition(".")[0] for name in self._tensors if name.startswith(prefix)}

    def check(self, name: str, shape: tuple[int, ...] | None) -> None:
        """Raise ModelError if a weight is missing, or has another shape than the given one."""
        if name not in self._tensors:
            raise ModelError(f"{self.where}: weight {name} is missing; is the file whole, and of ESM-2?")
        found = tuple(self._tensors[name].shape)
        if shape is not None and found != shape:
            raise ModelError(f"{self.where}: weight {name} has shape {found}, its settings ask for {shape}")

    def take(self, name: str, shape: tuple[int, ...] | None) -> Tensor:
        """Remove and return a weight, in float32; its shape is checked if one is given."""
        self.check(name, shape)
        tensor = self._tensors.pop(name)
        if not tensor.is_floating_point():
            raise ModelError(f"{self.where}: weight {name} has type {tensor.dtype}; save it as floating-point numbers")
        return tensor.float()

    def has_frequencies(self) -> bool:
        """Whether rotary frequencies are stored."""
        return any(name.endswith(FREQUENCIES) for name in self._tensors)

    def take_frequencies(self, shape: tuple[int, ...]) -> Tensor:
        """Remove and return the rotary frequencies, stored once, or for each layer with the same values."""
        first, *others = (self.take(name, shape) for name in list(self._tensors) if name.endswith(FREQUENCIES))
        if not all(torch.equal(other, first) for other in others):
            raise ModelError(f"{self.where}: layers have different rotary frequencies, which a model here shares")
        return first

    def check_empty(self) -> None:
        """Raise ModelError if weights are left."""
        if self._tensors:
            first = min(self._tensors)
            raise ModelError(
                f"{self.where}: weight {named(first)} has no place in ESM-2 of these settings; it is another model, or "
                "of a newer version, and cannot be converted without loss"
            )


def check_alphabet(tokens: list[str], where: str) -> None:
    """Raise ModelError if a vocabulary is not ESM's 33 tokens in their order."""
    if tokens != list(alphabet.TOKENS):
        raise ModelError(f"{where}: its {len(tokens)} tokens are not ESM's 33 in their order, so it is no ESM-2")


def as_mapping(value: Any, what: str) -> dict[str, Any]:
    """Make a dictionary of a JSON object or a namespace.

    Raises:
        ModelError: it is neither.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    raise ModelError(f"{what} is missing or of an unknown form")
