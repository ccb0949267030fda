"""config.json of a model directory: the model's settings, and facts about how it came about."""

from pathlib import Path
from typing import Any

from protein_lm import alphabet
from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError, ModelError, quoted
from protein_lm.files.plain_files import read_json
from protein_lm.files.settings import parse

FORMAT_VERSION = 2
"""Version of config.json that is written: options of attention stand with their kind."""
READABLE_VERSIONS = (1, FORMAT_VERSION)
MODEL_TYPE = "protein_lm"
"""Tells our config.json from those of other libraries on the Hub."""
CONFIG = "config.json"


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
