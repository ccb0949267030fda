"""What may be another in the recipe when a run goes on."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.errors import ConfigError

HARMLESS = frozenset(
    f"training.{key}"
    for key in (
        "validate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_skipped_steps",
        "gradient_checkpointing",
        "trackers",
    )
)
"""Keys that no weight depends on: they may change without a word."""
_OF_A_RUN = frozenset(
    {
        "training.seed",
        "training.optimizer",
        "training.lora_rank",
        "training.lora_alpha",
        "training.lora_layers",
        "data.windows",
    }
)
"""Keys that, like the head and the model but for its dropout, a run cannot change: its weights, moments or place would fit no
other."""


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What differs between two recipes (as JSON), key -> `section.key: old -> new`."""
    return {
        f"{section}.{key}": f"{section}.{key}: {_shown(old[section].get(key))} -> {_shown(value)}"
        for section, values in new.items()
        for key, value in values.items()
        if old[section].get(key) != value
    }


def check_changes(
    old: Recipe | FineTuningRecipe, new: Recipe | FineTuningRecipe, *, allowed: Collection[str], run: Path
) -> list[str]:
    """What a run that goes on changes, as `section.key: old -> new`.

    Args:
        old: recipe of the run so far.
        new: recipe to go on with.
        allowed: keys that the user allows to change, as `section.key`.
        run: for messages.

    Raises:
        ConfigError: a key changed that was not allowed, or that can never change; or `allowed` has an unknown key.
    """
    content = new.model_dump(mode="json")
    known = {f"{section}.{key}" for section, values in content.items() for key in values}
    if unknown := sorted(set(allowed) - known):
        raise ConfigError(f"--allow-change {unknown[0]}: no key of a recipe; expected one such as training.num_steps")
    changed = differences(old.model_dump(mode="json"), content)
    if fixed := [text for key, text in changed.items() if _is_fixed(key)]:
        raise ConfigError(
            f"{run}: resumed with another recipe: {', '.join(fixed)}; this cannot change within a run: start a new one, with "
            f"--init {run} if the model is the same"
        )
    if refused := [key for key in changed if key not in HARMLESS and key not in allowed]:
        raise ConfigError(
            f"{run}: resumed with another recipe: {', '.join(changed[key] for key in refused)}; set it back, or add "
            + " ".join(f"--allow-change {key}" for key in refused)
        )
    return list(changed.values())


def _is_fixed(key: str) -> bool:
    return key in _OF_A_RUN or (key.startswith(("model.", "head.")) and key != "model.dropout")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
