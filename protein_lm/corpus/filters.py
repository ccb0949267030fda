"""Filters: which records of a source are wanted."""

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import ResiduePolicy
from protein_lm.errors import ConfigError, InputError
from protein_lm.io.records import FRAGMENT, Columns

LEVELS = frozenset(range(1, 6))
"""UniProtKB's levels of evidence for a protein's existence."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions for a record to be kept. A filter drops records that lack the annotation it asks for."""

    min_length: int = 1
    """Residues."""
    max_length: int | None = None
    """Residues. None: any number."""
    drop_fragments: bool = False
    """Whether records marked as fragments are dropped."""
    taxon_ids: frozenset[int] = field(default_factory=frozenset)
    """NCBI taxonomy identifiers, without those below them in the tree. Empty: all."""
    min_cluster_size: int = 0
    """Least number of members of a UniRef cluster. 0: any, and records that are no clusters."""
    protein_existence: frozenset[int] = field(default_factory=frozenset)
    """Levels of evidence. Empty: all."""

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise ConfigError(
                f"minimum length {self.min_length} is below 1, and no sequence is empty; choose 1 or more"
            )
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(
                f"maximum length {self.max_length} is below minimum length {self.min_length}; exchange or correct them"
            )
        if wrong := sorted(self.protein_existence - LEVELS):
            raise ConfigError(f"there is no level of protein existence {wrong[0]}; choose from 1 to 5")
        if wrong := sorted(taxon for taxon in self.taxon_ids if not 0 < taxon < 2**31):
            raise ConfigError(f"{wrong[0]} is no NCBI taxonomy identifier; look it up at the NCBI, 9606 is human")
        if self.min_cluster_size < 0:
            raise ConfigError(f"minimum cluster size {self.min_cluster_size} is below 0; choose 1 or more")

    def facts(self) -> dict[str, object]:
        """Return the entry for the manifest."""
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(self).items()}


REASONS = (
    "malformed",
    "too_short",
    "too_long",
    "ambiguous_residue",
    "fragment",
    "other_taxon",
    "small_cluster",
    "other_evidence",
    "duplicate_sequence",
)
"""Reasons to drop a record; each record counts under the first that applies."""


@dataclass(slots=True)
class Selection:
    """Records that passed the filters, and why others did not."""

    keep: NDArray[np.bool_]
    """(N,) whether a record is kept."""
    num_dropped: Counter[str]
    """Records by reason."""
    annotated: frozenset[str]
    """Fields of `Annotations` that filters ask for and that some record has."""


_ASKED = {"taxon_ids": "taxon", "cluster_sizes": "cluster size", "protein_existence": "level of protein existence"}


def select(records: Columns, wanted: Filters, policy: ResiduePolicy) -> Selection:
    """Apply filters to records."""
    annotations = records.annotations
    unwanted = {"too_short": records.lengths < wanted.min_length}
    if wanted.max_length is not None:
        unwanted["too_long"] = records.lengths > wanted.max_length
    if policy is ResiduePolicy.DROP:
        unwanted["ambiguous_residue"] = records.has_ambiguous
    if wanted.drop_fragments:
        unwanted["fragment"] = (annotations.flags & FRAGMENT) > 0
    if wanted.taxon_ids:
        unwanted["other_taxon"] = ~np.isin(annotations.taxon_ids, sorted(wanted.taxon_ids))
    if wanted.min_cluster_size:
        unwanted["small_cluster"] = annotations.cluster_sizes < wanted.min_cluster_size
    if wanted.protein_existence:
        unwanted["other_evidence"] = ~np.isin(annotations.protein_existence, sorted(wanted.protein_existence))
    keep = np.ones(records.lengths.size, dtype=bool)
    dropped = Counter(malformed=records.num_faulty)
    for reason, out in unwanted.items():
        if out.any():
            dropped[reason] += int((keep & out).sum())
            keep &= ~out
    return Selection(keep, +dropped, frozenset(name for name in _ASKED if getattr(annotations, name).any()))


def check_annotated(wanted: Filters, annotated: frozenset[str]) -> None:
    """Raise InputError if a filter asked for an annotation that no record has."""
    asked = {
        "taxon_ids": wanted.taxon_ids,
        "cluster_sizes": wanted.min_cluster_size,
        "protein_existence": wanted.protein_existence,
    }
    for name, is_asked in asked.items():
        if is_asked and name not in annotated:
            raise InputError(
                f"no record of the sources states its {_ASKED[name]}, so it cannot be asked for; leave the filter out, or "
                "give files with UniProt's or UniRef's headers"
            )
