"""`from_pretrained`, `save_pretrained` and `push_to_hub` of models, known from huggingface_hub's `ModelHubMixin`.

Model directories are a layer above models: `checkpoint.directory` hands in the functions that these methods call.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

if TYPE_CHECKING:
    from protein_lm.model.language_model import ProteinLM


class ModelDirectories(NamedTuple):
    """Functions that open, write and share model directories."""

    load: Callable[..., "ProteinLM"]
    save: Callable[..., None]
    push: Callable[..., str]


class Pretrained:
    """Base class of `ProteinLM`, with its methods for model directories."""

    directories: ClassVar[ModelDirectories]
    """Handed in when `protein_lm.checkpoint.directory` is imported, as `from protein_lm import ProteinLM` does."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "auto") -> "ProteinLM":
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
        return cls.directories.load(name, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model directory, whole or not at all.

        Raises:
            OutputError: `folder` exists or cannot be written.
        """
        self.directories.save(cast("ProteinLM", self), Path(folder))

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Put the model on the Hub as one commit, whose address is returned.

        Args:
            repository: org/model; made if it is not there.
            private: whether a new repository is visible only to those whom its owner lets in.

        Raises:
            ModelError: the Hub cannot be reached or does not take it.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            self.save_pretrained(path)
            return self.directories.push(str(path), repository, private=private)
