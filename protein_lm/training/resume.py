"""Where a run starts: at its first step, or at its newest checkpoint that is whole, with what may have changed since."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from protein_lm import __version__
from protein_lm.checkpoint.checksums import check_files
from protein_lm.checkpoint.training_state import read_training_state
from protein_lm.choices import Precision
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.errors import ConfigError, ModelError
from protein_lm.files.settings import parse
from protein_lm.training.checkpoints import Checkpoints
from protein_lm.training.progress import Progress
from protein_lm.training.task import Task

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
"""Keys of a recipe that no weight depends on: they may change freely."""
_FIXED = frozenset(
    {
        "training.seed",
        "training.optimizer",
        "training.lora_rank",
        "training.lora_alpha",
        "training.lora_layers",
        "data.windows",
    }
)
"""Keys that a run cannot change, like those of its head and its model (except dropout).

The weights, the moments or the position in the data would not fit another value.
"""


@dataclass(frozen=True)
class StartingPoint:
    """The state that a run starts from; the default is that of a new run."""

    recipe: Recipe | FineTuningRecipe
    progress: Progress = field(default_factory=Progress)
    checkpoint: Path | None = None
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Moments of the optimizers, by name."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Changes of the recipe so far, each with its step."""
    notes: list[str] = field(default_factory=list)
    """Lines for the log."""
    damaged: list[Path] = field(default_factory=list)
    """Newer checkpoints that cannot be used."""


def restore(run: Path, task: Task, *, allowed: Collection[str]) -> StartingPoint:
    """Read the newest checkpoint that is whole.

    Args:
        run: the run directory.
        task: its recipe is the new one; its data must be that of the run.
        allowed: keys that the user allows to change, as `section.key`.

    Raises:
        ModelError: no checkpoint is whole.
        ConfigError: the data changed, or a key that may not change.
    """
    faults, damaged = [], []
    for checkpoint in Checkpoints(run).newest_first():
        try:
            check_files(checkpoint)
            state, moments = read_training_state(checkpoint)
            progress = Progress.of(state)
            corpus, version, recorded = (dict(state["corpus"]), str(state["protein_lm_version"]), state["recipe"])
            changes = list(state["changes"])
        except (ModelError, KeyError, TypeError, ValueError) as error:
            fault = f"{checkpoint}: damaged training state ({error})"
            faults.append(str(error) if isinstance(error, ModelError) else fault)
            damaged.append(checkpoint)
            continue
        break
    else:
        raise ModelError(f"{run}: no checkpoint is whole: {'; '.join(faults)}; start a new run")
    notes = [f"{fault}; resuming from the checkpoint of step {progress.step}" for fault in faults]
    if different := [name for name, value in task.data.identity.items() if corpus.get(name) != value]:
        raise ConfigError(
            f"{run}: resumed with another corpus: {different[0]} of {task.data.path} is not that of the run so "
            f"far; name the corpus that it began with, or start a new run, with --init {run}"
        )
    recipe = task.recipe
    old = parse(type(recipe), recorded, str(checkpoint))
    if recipe.training.precision is Precision.AUTO:
        recipe = with_precision(recipe, old.training.precision)
    if changed := check_changes(old, recipe, allowed=allowed, run=run):
        changes.append({"step": progress.step, "changes": changed})
        notes.append(f"changed from step {progress.step} on: {', '.join(changed)}")
    if version != __version__:
        notes.append(f"the checkpoint was written by protein_lm {version}, this is {__version__}")
    return StartingPoint(recipe, progress, checkpoint, moments, changes, notes, damaged)


def with_precision(recipe: Recipe | FineTuningRecipe, precision: Precision) -> Recipe | FineTuningRecipe:
    """A recipe whose precision is settled."""
    training = recipe.training.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"training": training})


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """The differences of two recipes (as JSON), key -> `section.key: old -> new`."""
    return {
        f"{section}.{key}": f"{section}.{key}: {_shown(old[section].get(key))} -> {_shown(value)}"
        for section, values in new.items()
        for key, value in values.items()
        if old[section].get(key) != value
    }


def check_changes(
    old: Recipe | FineTuningRecipe, new: Recipe | FineTuningRecipe, *, allowed: Collection[str], run: Path
) -> list[str]:
    """The changes that a resumed run makes to its recipe, as `section.key: old -> new`.

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
    return key in _FIXED or (key.startswith(("model.", "head.")) and key != "model.dropout")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
