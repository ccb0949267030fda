"""Trackers of experiments (TensorBoard, Weights & Biases and others), which Accelerate talks to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from protein_lm.choices import TrackerName
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.errors import ConfigError


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Make sure that the package of each tracker is installed.

    Raises:
        ConfigError: one is not.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name.value not in available:
            raise ConfigError(
                f"training.trackers: {name.value} is not installed; run pip install {name.value}, or leave it out"
            )


def start_trackers(recipe: Recipe | FineTuningRecipe, run: Path, *, step: int) -> list[GeneralTracker]:
    """Start the trackers of a recipe. The run is named like its folder, the project like the folder around it.

    Args:
        recipe: names the trackers.
        run: a run directory that exists.
        step: the step from which the run resumes; 0 if it is new.

    Raises:
        ConfigError: a tracker does not start, for example without a login or a network.
    """
    trackers = []
    for name in dict.fromkeys(recipe.training.trackers):
        try:
            tracker = _build(name, run.resolve(), step)
            tracker.start()
            if step == 0:
                tracker.store_init_configuration(_flat(recipe))
        except Exception as error:  # whatever a foreign package and its server may raise
            reason = " ".join(str(error).split())
            raise ConfigError(f"training.trackers: {name.value} does not start: {reason}") from error
        trackers.append(tracker)
    return trackers


def _build(name: TrackerName, run: Path, step: int) -> GeneralTracker:
    build: Any = LOGGER_TYPE_TO_CLASS[name.value]
    project = run.parent.name or "protein-lm"
    if name is TrackerName.TENSORBOARD:
        # Events after the checkpoint that a run resumes from are hidden, as their rows are removed from metrics.jsonl.
        return build("tensorboard", run, purge_step=step + 1 if step else None)
    if name is TrackerName.AIM:
        return build(run.name, run)
    settings: dict[TrackerName, dict[str, Any]] = {
        TrackerName.WANDB: {"name": run.name, "dir": run},
        TrackerName.TRACKIO: {"name": run.name, "resume": "allow"},
        TrackerName.MLFLOW: {"run_name": run.name},
        TrackerName.SWANLAB: {"experiment_name": run.name, "logdir": run / "swanlab"},
    }
    return build(project, **settings.get(name, {}))


def _flat(recipe: Recipe | FineTuningRecipe) -> dict[str, Any]:
    """The settings of a recipe by `section.key`, as numbers, truth values or text."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, values in recipe.model_dump(mode="json").items()
        for key, value in values.items()
    }
