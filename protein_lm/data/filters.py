"""Which records of a source are wanted."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import ResiduePolicy
from protein_lm.data.records import FRAGMENT, RecordBlock
from protein_lm.errors import ConfigError, InputError

LEVELS = frozenset(range(1, 6))
"""UniProtKB's levels of evidence for a protein's existence."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a record must be to be kept. A record that does not say what a filter asks is dropped by it."""

    min_length: int = 1
    """In residues."""
    max_length: int | None = None
    """In residues. None: any."""
    drop_fragments: bool = False
    """Whether records marked as fragments are dropped."""
    taxon_ids: frozenset[int] = field(default_factory=frozenset)
    """NCBI taxonomy identifiers, exactly these; none: all."""
    min_cluster_size: int = 0
    """Least number of members of a UniRef cluster; 0: any, and records that are no clusters."""
    protein_existence: frozenset[int] = field(default_factory=frozenset)
    """Levels of evidence; none: all."""

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
        """What the manifest says."""
        return {
            "min_length": self.min_length,
            "max_length": self.max_length,
            "drop_fragments": self.drop_fragments,
            "taxon_ids": sorted(self.taxon_ids),
            "min_cluster_size": self.min_cluster_size,
            "protein_existence": sorted(self.protein_existence),
        }


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
"""Why a record may be dropped; each counts under the first that applies."""


class Filter:
    """Filters at work: counts what they drop, and notices where nothing could be asked."""

    def __init__(self, filters: Filters, policy: ResiduePolicy) -> None:
        self._filters, self._policy = filters, policy
        self.num_dropped: dict[str, int] = dict.fromkeys(REASONS, 0)
        self._was_said = {"small_cluster": False, "other_taxon": False, "other_evidence": False}

    def keep(self, block: RecordBlock) -> NDArray[np.bool_]:
        """(N,) the records to keep."""
        self.num_dropped["malformed"] += block.num_faulty
        keep = np.ones(len(block), dtype=bool)
        for reason, unwanted in self._unwanted(block).items():
            self.num_dropped[reason] += int((keep & unwanted).sum())
            keep &= ~unwanted
        return keep

    def _unwanted(self, block: RecordBlock) -> dict[str, NDArray[np.bool_]]:
        wanted, said = self._filters, block.annotations
        unwanted = {"too_short": block.lengths < wanted.min_length}
        if wanted.max_length is not None:
            unwanted["too_long"] = block.lengths > wanted.max_length
        if self._policy is ResiduePolicy.DROP:
            unwanted["ambiguous_residue"] = block.has_ambiguous
        if wanted.drop_fragments:
            unwanted["fragment"] = (said.flags & FRAGMENT) > 0
        if wanted.taxon_ids:
            unwanted["other_taxon"] = ~np.isin(said.taxon_ids, sorted(wanted.taxon_ids))
            self._was_said["other_taxon"] |= bool(said.taxon_ids.any())
        if wanted.min_cluster_size:
            unwanted["small_cluster"] = said.cluster_sizes < wanted.min_cluster_size
            self._was_said["small_cluster"] |= bool(said.cluster_sizes.any())
        if wanted.protein_existence:
            unwanted["other_evidence"] = ~np.isin(said.protein_existence, sorted(wanted.protein_existence))
            self._was_said["other_evidence"] |= bool(said.protein_existence.any())
        return unwanted

    def check(self) -> None:
        """Raise InputError where a filter found nothing that it could ask."""
        wanted = self._filters
        for is_set, reason, what in (
            (wanted.taxon_ids, "other_taxon", "taxon"),
            (wanted.min_cluster_size, "small_cluster", "cluster size"),
            (wanted.protein_existence, "other_evidence", "level of protein existence"),
        ):
            if is_set and not self._was_said[reason]:
                raise InputError(
                    f"no record of the sources states its {what}, so it cannot be asked for; leave the filter out, or give "
                    "files with UniProt's or UniRef's headers"
                )
