"""Settings that a person wrote: a YAML file, overrides such as `training.num_steps=200`, and what is wrong with them."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from protein_lm.errors import ConfigError, named, quoted
from protein_lm.files.plain_yaml import MOST_CHARACTERS, parse_yaml


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the sections of a recipe.

    Raises:
        ConfigError: the file cannot be read, or is no YAML with sections.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe; see scripts/recipes for examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe has the parts model, data and training; this file has none of them")
    return content


def parse_override(override: str) -> tuple[list[str], Any]:
    """Split `section.key=value` into its keys and its value, which is YAML.

    Raises:
        ConfigError: not of this form.
    """
    name, separator, value = override.partition("=")
    keys = name.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {named(override)}: expected section.key=value, for example training.num_steps=200")
    return keys, parse_value(override, value)


def parse_value(setting: str, value: str) -> Any:
    """Return what the YAML of a value says; `setting` is for the message.

    Raises:
        ConfigError: the value is not valid YAML.
    """
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"--set {named(setting)}: the value is not valid YAML") from error


def put(content: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a value in nested sections, which are made where they are missing.

    Raises:
        ConfigError: a key before the last one has a value that is no section.
    """
    section = content
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            name = named(".".join(keys[:depth]))
            raise ConfigError(f"--set {named('.'.join(keys))}: {name} is not a section of the recipe")
    section[keys[-1]] = value


def parse(section: type[BaseModel], content: Any, where: str) -> Any:
    """Validate `content` as a `section`. The first fault becomes one line that names the key and the value.

    Raises:
        ConfigError: an unknown key, a missing one or an impossible value.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(named(str(part)) for part in first["loc"]) or "recipe"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known ones here: {', '.join(_known_keys(section, first['loc'][:-1]))}"
        elif first["type"] == "missing":
            message = "missing; give it a value"
        elif first["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]} (got {quoted(first['input'])})"
        raise ConfigError(f"{where}: {key}: {message}") from error


def _known_keys(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        inner = section.model_fields[str(part)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        section = inner
    return sorted(section.model_fields)
