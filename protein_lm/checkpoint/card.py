"""A model described in words: facts that its card and the report of its run share."""

import html
import math
from collections.abc import Mapping
from typing import Any

from protein_lm import __version__
from protein_lm.model.language_model import ProteinLM

CARD = "README.md"
"""Name of the card in a model directory."""
_LABELS = {"step": "optimizer steps", "num_tokens": "tokens seen in training"}


def model_facts(model: ProteinLM, training: Mapping[str, Any]) -> dict[str, str]:
    """Facts about a model by name; names and values are plain text, one line each.

    Args:
        model: the model.
        training: facts about training in its config.json.
    """
    config = model.config
    facts = {
        "objective": config.objective.value,
        "attention": config.attention_name,
        "size": f"{config.num_layers} layers, width {config.width}, {config.num_heads} heads",
        "weights": f"{model.num_parameters:,}",
        "window": f"{config.max_length:,} tokens, the two special ones included",
        "positions": config.positions.value,
    }
    for name, value in training.items():
        facts |= _training_fact(name, value)
    return {" ".join(name.split()): " ".join(value.split()) for name, value in facts.items()}


def model_card(model: ProteinLM, training: Mapping[str, Any]) -> str:
    """The text of a card: Markdown, with the metadata that the Hub reads."""
    objective = model.config.objective.value
    lines = [
        *("---", "library_name: protein_lm", "tags:", "- protein", f"- {objective}-language-model", "---", ""),
        f"# A {objective} protein language model with {model.config.attention_name} attention",
        "",
        *(html.escape(f"- {name}: {value}", quote=False) for name, value in model_facts(model, training).items()),
        "",
        f"Written by protein_lm {__version__}. Open it with `protein_lm.load(folder)`, or its name on the Hub.",
        "",
    ]
    return "\n".join(lines)


def _training_fact(name: str, value: Any) -> dict[str, str]:
    match name, value:
        case "best_validation_loss_nats", float():
            return {"best validation loss": f"{value:.4f} nats per residue, perplexity {math.exp(value):.2f}"}
        case "corpus", dict():
            return {f"corpus, from {file}": f"SHA-256 {digest}" for file, digest in value.items()}
    label = _LABELS.get(name, name.replace("_", " "))
    return {label: f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)}
