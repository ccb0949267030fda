"""The base model that adapters or a head were trained on: where it lies, and that it is still the same."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protein_lm.config import TrainingConfig
from protein_lm.errors import ModelError, quoted
from protein_lm.files.output import checksum

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Base:
    """A model directory that another one refers to instead of holding its weights."""

    path: Path
    xxh3_128: str
    """Checksum of the file of its weights."""
    adapters: dict[str, Any] | None = None
    """`rank` and `alpha` of adapters that were trained on it, if there are any."""

    @classmethod
    def of(cls, path: Path, config: TrainingConfig) -> "Base":
        """Describe the model directory that training starts from.

        Raises:
            ModelError: it refers to another model itself.
        """
        if not (path / WEIGHTS).is_file():
            raise ModelError(
                f"{path}: holds adapters or a head, not a model of its own; make one with: protein-lm convert {path} "
                "-o DIR --merge"
            )
        adapters = {"rank": config.lora_rank, "alpha": config.lora_alpha} if config.lora_rank else None
        return cls(path.resolve(), checksum(path / WEIGHTS), adapters)

    @classmethod
    def read(cls, folder: Path, facts: dict[str, Any]) -> "Base":
        """Read what `facts` wrote, then find and check the weights.

        Raises:
            ModelError: the model is gone, or its weights have changed.
        """
        try:
            paths = Path(facts["path"]), Path(os.path.normpath(folder / facts["relative_path"]))
            recorded, adapters = str(facts["xxh3_128"]), facts.get("adapters")
            if adapters is not None:
                adapters = {"rank": int(adapters["rank"]), "alpha": float(adapters["alpha"])}
                if not math.isfinite(adapters["alpha"]):
                    raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"{folder}: damaged, its config.json does not say on which model it stands") from error
        found = next((path for path in paths if (path / WEIGHTS).is_file()), None)
        if found is None:
            raise ModelError(
                f"{folder}: was trained on the model {paths[0]}, which is gone; put it back there, or a link to it"
            )
        if checksum(found / WEIGHTS) != recorded:
            raise ModelError(
                f"{folder}: was trained on the model {found}, whose weights are others now (their checksum was "
                f"{quoted(recorded)}); put the former ones back, or train anew"
            )
        return cls(found, recorded, adapters)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Facts about the base for the config.json of a model directory in `folder`."""
        relative = os.path.relpath(self.path, folder.resolve())
        found = {"path": str(self.path), "relative_path": relative, "xxh3_128": self.xxh3_128}
        return found if self.adapters is None else {**found, "adapters": self.adapters}
