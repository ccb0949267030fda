"""Training states: what a run needs to be resumed, next to the model in its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from protein_lm.checkpoint.tensor_files import load_tensors, save_tensors
from protein_lm.errors import ModelError
from protein_lm.files.plain_files import read_json

STATE_FACTS, STATE_TENSORS = "training_state.json", "training_state.safetensors"


def write_training_state(folder: Path, facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write what a run needs to be resumed: JSON facts (step, settings) and tensors (moments, random states)."""
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
        raise ModelError(f"{path / STATE_FACTS}: no usable training state to resume from ({error})") from error


def read_training_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors that `write_training_state` wrote.

    Raises:
        ModelError: missing or damaged.
    """
    return read_training_facts(path), load_tensors(path / STATE_TENSORS)
