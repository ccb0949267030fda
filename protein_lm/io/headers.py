"""FASTA header lines: the identifier of any of them, and every field of UniProtKB's and UniRef's.

Format: https://www.uniprot.org/help/fasta-headers
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from protein_lm.errors import InputError


class Database(str, Enum):
    """Where a header's form says that its record comes from."""

    SWISS_PROT = "swiss-prot"
    TREMBL = "trembl"
    UNIREF50 = "uniref50"
    UNIREF90 = "uniref90"
    UNIREF100 = "uniref100"
    PLAIN = "plain"
    """Any other FASTA file: an identifier and a free description."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of one header line; None where the line does not have them."""

    sequence_id: str
    """UniProtKB accession, UniRef cluster identifier, or the first word."""
    description: str
    """Protein or cluster name, without the fields below; empty where there is none."""
    database: Database
    entry_name: str | None = None
    """UniProtKB mnemonic, `BLAT_ECOLX`."""
    organism: str | None = None
    """Species, or for a UniRef cluster the lowest common taxon."""
    taxon_id: int | None = None
    """NCBI taxonomy identifier."""
    gene: str | None = None
    protein_existence: int | None = None
    """1 (seen as protein) to 5 (uncertain)."""
    sequence_version: int | None = None
    cluster_size: int | None = None
    """Members of a UniRef cluster."""
    representative: str | None = None
    """Entry name or UniParc identifier of a UniRef cluster's representative."""
    is_fragment: bool = False
    """The name ends in `(Fragment)` or `(Fragments)`."""


_KNOWLEDGEBASE = {"sp": Database.SWISS_PROT, "tr": Database.TREMBL}
_FIRST_WORD = re.compile(r"[\x00-\x20]*([^\x00-\x20]+)")
_KNOWLEDGEBASE_WORD = re.compile(r"(?:sp|tr)\|([^|]+)(?:\|(.*))?$", re.DOTALL)
_CLUSTER_WORD = re.compile(r"UniRef(?:50|90|100)_\S+$")

# A name may itself hold `=`, so each field is looked for by its key, in UniProt's order, up to the end of the line.
_KNOWLEDGEBASE_REST = re.compile(
    r"(?P<description>.*?)"
    r"(?:(?:^|\s)OS=(?P<organism>.*?)(?:\sOX=(?P<taxon_id>\d+))?(?:\sGN=(?P<gene>.*?))?"
    r"(?:\sPE=(?P<protein_existence>\d))?(?:\sSV=(?P<sequence_version>\d+)(?:\s\w+=\S*)*)?)?$"
)
_CLUSTER_REST = re.compile(
    r"(?P<description>.*?)"
    r"(?:(?:^|\s)n=(?P<cluster_size>\d+)(?:\sTax=(?P<organism>.*?))?(?:\sTaxID=(?P<taxon_id>\d+))?"
    r"(?:\sRepID=(?P<representative>\S+))?)?$"
)
_FRAGMENT = re.compile(r"\(Fragments?\)$")
_NUMBERS = ("taxon_id", "protein_existence", "sequence_version", "cluster_size")


def parse_header(line: str) -> Header:
    """The fields of one header line, with or without its leading `>`.

    Raises:
        InputError: the line has no identifier.

    >>> header = parse_header(">sp|P62593|BLAT_ECOLX Beta-lactamase TEM OS=Escherichia coli OX=562 GN=bla PE=1 SV=1")
    >>> header.sequence_id, header.entry_name, header.organism, header.taxon_id
    ('P62593', 'BLAT_ECOLX', 'Escherichia coli', 562)
    """
    line = line.removeprefix(">")
    words = _FIRST_WORD.match(line)
    word, rest = (words[1], line[words.end() :].strip()) if words else ("", "")
    if match := _KNOWLEDGEBASE_WORD.match(word):
        fields = _fields(_KNOWLEDGEBASE_REST, rest)
        return Header(match[1], database=_KNOWLEDGEBASE[word[:2]], entry_name=match[2] or None, **fields)
    if _CLUSTER_WORD.match(word):
        return Header(word, database=Database(word.partition("_")[0].lower()), **_fields(_CLUSTER_REST, rest))
    return Header(sequence_id(line), rest, Database.PLAIN, is_fragment=bool(_FRAGMENT.search(rest)))


def sequence_id(header: str) -> str:
    """The identifier in a header line without its `>`: a UniProtKB accession, otherwise the first word.

    Raises:
        InputError: it has none.

    >>> sequence_id("tr|A0A009|A0A009_9ACTN Putative kinase"), sequence_id("seq1 made up")
    ('A0A009', 'seq1')
    """
    words = _FIRST_WORD.match(header)
    if not words:
        raise InputError("a header has no identifier; write one after its '>'")
    match = _KNOWLEDGEBASE_WORD.match(words[1])
    return match[1] if match else words[1]


def _fields(pattern: re.Pattern[str], rest: str) -> dict[str, Any]:
    match = pattern.match(rest)
    fields: dict[str, Any] = match.groupdict() if match else {"description": rest}
    for name in _NUMBERS:
        if fields.get(name) is not None:
            fields[name] = int(fields[name])
    return {**fields, "is_fragment": bool(_FRAGMENT.search(fields["description"]))}
