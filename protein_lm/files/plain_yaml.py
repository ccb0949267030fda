"""Parses YAML that a person wrote, within bounds: keys are unique, and aliases do not fill the memory."""

from typing import Any

import yaml

MOST_CHARACTERS = 2**20
_MOST_NODES = 100_000
"""Limit for keys and values; those under an alias count each time."""


def parse_yaml(text: str) -> Any:
    """Parse a text of YAML.

    Raises:
        ValueError: it is not YAML, is too large or nested too deeply, has a key twice, or holds an impossible value.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"over {MOST_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_nodes(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases stand for over {_MOST_NODES:,} keys and values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (yaml.YAMLError, OverflowError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _num_nodes(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the nodes of a part of a document, with aliases written out, and check its keys."""
    if id(node) in known:
        number = known[id(node)]
        if number is None:
            raise ValueError("an alias stands for a part that it is in itself")
        return number
    known[id(node)] = None
    number = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        number += sum(_num_nodes(key, known) + _num_nodes(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(_num_nodes(each, known) for each in node.value)
    known[id(node)] = number
    return number


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"line {line}: {key.value} is on line {lines[key.value]} already; keep one of them")
            lines[key.value] = line
