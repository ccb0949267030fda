"""Opening, saving and sharing models by methods with the names of huggingface_hub's `ModelHubMixin`.

They call `checkpoint.directory`, a layer above this one, which is imported when it is needed.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from protein_lm.model.language_model import ProteinLM


class Pretrained:
    """Methods of `ProteinLM` that open, save and share models."""

    @staticmethod
    def from_pretrained(name: str | Path, *, device: str = "auto") -> "ProteinLM":
        """Open a model for use (dropout off).

        Args:
            name: a model directory, a run directory, whose best model is taken, or org/model[@revision] on the Hub.
            device: where to put the weights: cpu, cuda, mps, or auto.

        Raises:
            ModelError: there is no such model, or it cannot be used.

        >>> from protein_lm import ProteinLM
        >>> ProteinLM.from_pretrained("checkpoints/tiny-causal", device="cpu").is_causal
        True
        """
        from protein_lm.checkpoint.directory import load_model

        return load_model(name, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model directory, whole or not at all.

        Raises:
            OutputError: `folder` exists or cannot be written.
        """
        from protein_lm.checkpoint.directory import save_model

        save_model(cast("ProteinLM", self), Path(folder))

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Put the model on the Hub as one commit, and return its address.

        Args:
            repository: org/model; created if it does not exist.
            private: whether a new repository is private.

        Raises:
            ModelError: the Hub cannot be reached or does not take it.
        """
        from protein_lm.checkpoint.directory import push_model, save_model

        with TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            save_model(cast("ProteinLM", self), path)
            return push_model(str(path), repository, private=private)
