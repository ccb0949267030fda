"""The table of attention kinds: a name in a recipe -> the options of the kind, which build its operation.

A new kind is one file like `low_rank.py`, one entry in `ATTENTION_KINDS`, and one line in the contract test.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from protein_lm.attention.kinds.cosformer import CosformerOptions
from protein_lm.attention.kinds.exact import ExactOptions
from protein_lm.attention.kinds.interface import AttentionOperation, AttentionOptions, LayerShape
from protein_lm.attention.kinds.linear import (
    FEED_FORWARD_FEATURES,
    RANDOM_FEATURES,
    EluOptions,
    FeedForwardOptions,
    HedgehogOptions,
    RandomFeatureOptions,
)
from protein_lm.attention.kinds.low_rank import LinformerOptions, NystromOptions
from protein_lm.attention.kinds.lsh import LshOptions
from protein_lm.attention.kinds.sparse import BigBirdOptions, LocalGlobalOptions, LocalOptions, StridedOptions
from protein_lm.errors import quoted

ATTENTION_KINDS: dict[str, type[AttentionOptions]] = {
    "exact": ExactOptions,
    **dict.fromkeys(RANDOM_FEATURES, RandomFeatureOptions),
    "elu": EluOptions,
    "cosformer": CosformerOptions,
    **dict.fromkeys(FEED_FORWARD_FEATURES, FeedForwardOptions),
    "hedgehog": HedgehogOptions,
    "local": LocalOptions,
    "local-global": LocalGlobalOptions,
    "strided": StridedOptions,
    "bigbird": BigBirdOptions,
    "lsh": LshOptions,
    "linformer": LinformerOptions,
    "nystrom": NystromOptions,
}
"""Name -> options."""


def attention_options(attention: Any) -> AttentionOptions:
    """Return the options of a kind.

    Args:
        attention: the name of the kind, or a dictionary with the name as `kind` and some of its options.

    Raises:
        ValueError: in one line: an unknown kind, an option that the kind does not have, or an impossible value.

    >>> attention_options({"kind": "local", "window": 64})
    LocalOptions(kind='local', window=64)
    """
    if isinstance(attention, AttentionOptions):
        return attention
    content = attention if isinstance(attention, dict) else {"kind": attention}
    if "kind" not in content:
        raise ValueError("options of attention need their kind, such as {kind: performer-relu, num_features: 64}")
    kind = content["kind"]
    if not isinstance(kind, str) or kind not in ATTENTION_KINDS:
        raise ValueError(f"{quoted(kind)} is no kind of attention; known ones: {', '.join(ATTENTION_KINDS)}")
    for option in content:
        check_option(kind, option)
    try:
        return ATTENTION_KINDS[kind].model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            option = ".".join(map(str, first["loc"]))
            message = f"{option}: {message[0].lower()}{message[1:]} (got {quoted(first['input'])})"
        raise ValueError(f"{kind} attention: {message}") from error


def check_option(kind: str, option: Any) -> None:
    """Refuse an option that a kind does not have.

    Raises:
        ValueError: naming the kinds that have it, or else the options of this kind.
    """
    if option in (known := ATTENTION_KINDS[kind].model_fields):
        return
    if kinds := [name for name, options in ATTENTION_KINDS.items() if option in options.model_fields]:
        remedy = f"kinds that have it: {', '.join(kinds)}"
    else:
        remedy = f"its options: {', '.join(name for name in known if name != 'kind') or 'none'}"
    raise ValueError(f"{kind} attention has no option {quoted(option)}; {remedy}")


def with_defaults(attention: Any, options: Mapping[str, Any]) -> Any:
    """Add options to a kind by name, a dictionary as for `attention_options`, or a list of these.

    Each kind gets those of the options that it has and that are not set already. What names no kind stays unchanged.

    >>> with_defaults(["exact", "local"], {"window": 64})
    [{'kind': 'exact'}, {'kind': 'local', 'window': 64}]
    """
    if isinstance(attention, list | tuple):
        return [with_defaults(each, options) for each in attention]
    content = _as_dictionary(attention)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in ATTENTION_KINDS:
        return attention
    own = ATTENTION_KINDS[kind].model_fields.keys() - content
    return content | {name: value for name, value in options.items() if name in own}


def options_in(attention: Any) -> dict[str, Any]:
    """Return all options set in what `with_defaults` takes; where layers differ, those of the lowest layer."""
    found: dict[str, Any] = {}
    for each in attention if isinstance(attention, list | tuple) else [attention]:
        found = {name: value for name, value in _as_dictionary(each).items() if name != "kind"} | found
    return found


def _as_dictionary(attention: Any) -> dict[str, Any]:
    if isinstance(attention, AttentionOptions):
        return attention.model_dump()
    return attention if isinstance(attention, dict) else {"kind": attention}


def build_attention(attention: Any, layer: LayerShape) -> AttentionOperation:
    """Return the operation of a layer.

    Args:
        attention: a kind as for `attention_options`.
        layer: heads, direction and length.

    Raises:
        ValueError: as `attention_options`, or a kind without a causal form in a causal layer.
    """
    options = attention_options(attention)
    if layer.causal and not options.has_causal_form:
        raise ValueError(f"{options.kind} attention has no causal form; choose another kind")
    return options.build(layer)


def kinds_that_can_be_split() -> list[str]:
    """Return the kinds by which several processes may share a row (see `sequence_parallel`)."""
    smallest = LayerShape(num_heads=1, head_width=2, causal=False, max_length=1)
    return [kind for kind in ATTENTION_KINDS if build_attention(kind, smallest).can_be_split]
