"""What training and analysis need of a prepared corpus, wherever its sequences lie."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.split import Split
from protein_lm.io.records import Annotations

_SCANNED = 2**16


class Corpus(ABC):
    """N sequences of token ids without special tokens, numbered in an order that never changes."""

    path: Path
    """The folder that it was opened from."""
    manifest: dict[str, Any]
    """Where it came from and how it was made."""
    splits: NDArray[np.uint8]
    """(N,) values of `Split`."""

    @property
    def num_sequences(self) -> int:
        return self.splits.size

    @property
    @abstractmethod
    def num_residues(self) -> int:
        """Residues of all sequences."""

    @property
    @abstractmethod
    def sources(self) -> list[dict[str, Any]]:
        """The files that it was made of, as manifests list them."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Checksums of what makes it the same for training: residues, their order and their splits."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, range]:
        """Names of the stores that it consists of, and the numbers of their sequences, in order."""

    @abstractmethod
    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S,) residues of some sequences."""

    @abstractmethod
    def places_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S,) where some sequences begin, for `residues_at`; their residues have consecutive places."""

    @abstractmethod
    def residues_at(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(R,) token ids at some places."""

    @abstractmethod
    def residues(self, index: int) -> NDArray[np.uint8]:
        """Token ids (length,) of one sequence: a view of a mapped file."""

    @abstractmethod
    def sequence_id(self, index: int) -> str:
        """Identifier of one sequence."""

    @abstractmethod
    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        """What some sequences say about themselves."""

    def length(self, index: int) -> int:
        """Residues of one sequence."""
        return int(self.lengths_of(np.array([index]))[0])

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Numbers of the sequences of a split, in order."""
        return np.flatnonzero(self.splits == split)

    def blocks(self, size: int = _SCANNED) -> Iterator[NDArray[np.int64]]:
        """The numbers of all sequences in order, up to `size` at a time."""
        for start in range(0, self.num_sequences, size):
            yield np.arange(start, min(start + size, self.num_sequences))

    def longer_than(self, length: int) -> NDArray[np.int64]:
        """Numbers of the sequences of more residues than that."""
        found = [block[self.lengths_of(block) > length] for block in self.blocks()]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def tokens_of(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Token ids of some sequences, back to back."""
        lengths = self.lengths_of(indices)
        before = np.cumsum(lengths) - lengths
        return self.residues_at(np.repeat(self.places_of(indices) - before, lengths) + np.arange(lengths.sum()))
