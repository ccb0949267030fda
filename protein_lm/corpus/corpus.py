"""The interface of prepared corpora for training and analysis, wherever their sequences lie."""

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
    """Its sources and settings."""
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
        """Files that it was made of, as manifests list them."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Checksums of what determines training: residues, their order and their splits."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, range]:
        """Names of the stores that it consists of, in order, each with the indices of its sequences."""

    @abstractmethod
    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S,) residues of some sequences."""

    @abstractmethod
    def offsets_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S,) offset of the first residue of some sequences, for `residues_at`; the others follow."""

    @abstractmethod
    def residues_at(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(R,) token ids at some offsets."""

    @abstractmethod
    def residues(self, index: int) -> NDArray[np.uint8]:
        """Token ids (length,) of one sequence: a view of a mapped file."""

    @abstractmethod
    def sequence_id(self, index: int) -> str:
        """Identifier of one sequence."""

    @abstractmethod
    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        """Annotations of some sequences."""

    def length(self, index: int) -> int:
        """Residues of one sequence."""
        return int(self.lengths_of(np.array([index]))[0])

    def indices(self, split: Split) -> NDArray[np.int64]:
        """(S,) indices of the sequences of a split, in order."""
        return np.flatnonzero(self.splits == split)

    def blocks(self, size: int = _SCANNED) -> Iterator[NDArray[np.int64]]:
        """Yield the indices of all sequences in order, up to `size` at a time."""
        for start in range(0, self.num_sequences, size):
            yield np.arange(start, min(start + size, self.num_sequences))

    def longer_than(self, length: int) -> NDArray[np.int64]:
        """(S,) indices of the sequences with more residues than `length`."""
        longer = [block[self.lengths_of(block) > length] for block in self.blocks()]
        return np.concatenate([np.empty(0, dtype=np.int64), *longer])

    def tokens_of(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(R,) token ids of some sequences, back to back."""
        lengths = self.lengths_of(indices)
        before = np.cumsum(lengths) - lengths  # (S,) residues before each sequence in the result
        return self.residues_at(np.repeat(self.offsets_of(indices) - before, lengths) + np.arange(lengths.sum()))
