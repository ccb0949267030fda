"""UniProtKB's and UniRef's XML: a text of whole entries -> records.

Entries are cut out of the text and parsed by Expat, many at a time. So memory holds one block of the file, and a malformed
entry is one record at fault. Entities that a file defines itself are errors.

Formats: https://www.uniprot.org/docs/uniprot.xsd and https://www.uniprot.org/docs/uniref.xsd
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from protein_lm.errors import InputError
from protein_lm.io.raw_records import RawRecords
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED, Annotations, Memberships, Spans

MARK = b"</entry>"
KEPT = len(MARK)
"""Mark at which `text.whole_records` cuts, and the bytes of it that stay with the record before."""
ROOT = re.compile(rb"<(uniprot|UniRef(?:50|90|100)?)[\s>]")
_CLOSE = re.compile(rb"</(?:uniprot|UniRef(?:50|90|100)?)\s*>\s*$")
_CLOSING_BYTES = 200
_BEGIN = re.compile(rb"<entry[\s>]")
_NAMESPACE = re.compile(rb"(<entry[^>]*?)\sxmlns=(?:\"[^\"]*\"|'[^']*')")
_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([^\"']+)")
_DATASET = {"Swiss-Prot": REVIEWED, "TrEMBL": UNREVIEWED}
_EVIDENCE = {
    "evidence at protein level": 1,
    "evidence at transcript level": 2,
    "inferred from homology": 3,
    "predicted": 4,
    "uncertain": 5,
}


@dataclass(slots=True)
class _Fields:
    """Fields of one entry."""

    line: int
    families: Mapping[str, int]
    """Indices of the requested families by accession."""
    sequence_id: str = ""
    letters: str = ""
    taxon_id: int = 0
    cluster_size: int = 0
    protein_existence: int = 0
    flags: int = 0
    memberships: list[int] | None = field(default_factory=list)
    """Indices of families; None for clusters, which do not tell."""
    fault: str = ""


def check_encoding(beginning: bytes, path: Path) -> None:
    """Raise InputError for a file that says it is not UTF-8."""
    if (found := _ENCODING.match(beginning)) and found[1].lower() not in (b"utf-8", b"us-ascii", b"ascii"):
        raise InputError(f"{path}: XML in {found[1].decode('ascii', 'replace')!r}; save the file as UTF-8")


def parse(text: bytes, first_line: int, path: Path, families: Sequence[str] = ()) -> RawRecords:
    """Read the entries of a text. Text before and between entries is not looked at.

    If there are `families`, accessions of Pfam, memberships of proteins in them are read too. Clusters do not tell.
    """
    numbers = {family: number for number, family in enumerate(families)}
    texts, lines = _cut(text, first_line)
    try:
        elements = list(ElementTree.fromstring(b"<all>" + b"".join(texts) + b"</all>"))
        whole = len(elements) == len(texts)
    except ElementTree.ParseError:
        whole, elements = False, []
    entries = (
        [_read(element, _Fields(line, numbers)) for element, line in zip(elements, lines, strict=True)]
        if whole
        else [_read_alone(entry, _Fields(line, numbers)) for entry, line in zip(texts, lines, strict=True)]
    )
    ids, letters = (
        Spans.of([getattr(entry, name).encode() for entry in entries]) for name in ("sequence_id", "letters")
    )
    own_lines = np.array([entry.line for entry in entries], dtype=np.int64)
    layout = [letters.text.count(b"\n", a, b) + letters.text.count(b" ", a, b) for a, b in _pairs(letters)]
    return RawRecords(
        path=path,
        sequence_ids=ids,
        lines=own_lines,
        bodies=letters,
        body_lines=own_lines,
        num_layout=np.array(layout, dtype=np.int64),
        annotations=Annotations.of(entries),
        memberships=_memberships(entries) if families else None,
        layout=b" \n",
        faults={number: entry.fault for number, entry in enumerate(entries) if entry.fault},
    )


def is_closed(text: bytes) -> bool:
    """Whether the text after the last entry closes the root element, as whole files do."""
    return _CLOSE.search(text[-_CLOSING_BYTES:]) is not None


def _cut(text: bytes, first_line: int) -> tuple[list[bytes], list[int]]:
    """Cut out the text of each entry; also the line where it begins."""
    texts, lines, line, start = [], [], first_line, 0
    while found := _BEGIN.search(text, start):
        end = text.find(MARK, found.start())
        end = len(text) if end < 0 else end + KEPT
        line += text.count(b"\n", start, found.start())
        texts.append(_NAMESPACE.sub(rb"\1", text[found.start() : end], count=1))
        lines.append(line)
        line += text.count(b"\n", found.start(), end)
        start = end
    return texts, lines


def _read_alone(text: bytes, fields: _Fields) -> _Fields:
    if not text.endswith(MARK):
        fields.fault = "the file ends inside this entry; fetch the file again"
        return fields
    try:
        return _read(ElementTree.fromstring(text), fields)
    except ElementTree.ParseError as error:
        message, _, _ = str(error).partition(":")
        fields.line += error.position[0] - 1
        fields.fault = f"malformed XML ({message}); correct or remove the entry"
        return fields


def _read(entry: ElementTree.Element, fields: _Fields) -> _Fields:
    reader: Callable[[ElementTree.Element, _Fields], None] = _read_cluster if "id" in entry.attrib else _read_protein
    try:
        reader(entry, fields)
    except (ValueError, OverflowError) as error:
        fields.fault = f"{error}; correct or remove the entry"
    if not fields.sequence_id and not fields.fault:
        fields.fault = "the entry has no accession; correct or remove it"
    return fields


def _read_protein(entry: ElementTree.Element, fields: _Fields) -> None:
    fields.sequence_id = (entry.findtext("accession") or "").strip()
    fields.flags = _DATASET.get(entry.get("dataset", ""), 0)
    if (taxon := entry.find("organism/dbReference[@type='NCBI Taxonomy']")) is not None:
        fields.taxon_id = _number(taxon.get("id"))
    if (level := entry.find("proteinExistence")) is not None:
        fields.protein_existence = _EVIDENCE.get(level.get("type", ""), 0)
    if fields.families:
        references = [found.get("id", "") for found in entry.findall("dbReference") if found.get("type") == "Pfam"]
        fields.memberships = [fields.families[family] for family in references if family in fields.families]
    sequence = entry.find("sequence")
    if sequence is not None:
        fields.letters = sequence.text or ""
        fields.flags |= FRAGMENT if sequence.get("fragment") else 0


def _read_cluster(entry: ElementTree.Element, fields: _Fields) -> None:
    fields.sequence_id = entry.get("id", "").strip()
    fields.memberships = None
    properties = {found.get("type"): found.get("value") for found in entry.findall("property")}
    fields.cluster_size = _number(properties.get("member count"))
    fields.taxon_id = _number(properties.get("common taxon ID"))
    name = (entry.findtext("name") or "").removeprefix("Cluster: ")
    member = entry.find("representativeMember")
    if member is not None:
        fields.letters = member.findtext("sequence") or ""
    fields.flags = FRAGMENT if name.endswith(("(Fragment)", "(Fragments)")) else 0


def _memberships(entries: Sequence[_Fields]) -> Memberships | None:
    """Memberships of the entries; None if one does not tell."""
    pairs = []
    for number, entry in enumerate(entries):
        if entry.memberships is None:
            return None
        pairs += [(number, family) for family in entry.memberships]
    return Memberships.of(pairs)


def _number(text: str | None) -> int:
    """Read a number of up to 31 bits; 0 if there is none."""
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise ValueError(f"{text[:20]!r} stands where a number should")
    return int(text)


def _pairs(spans: Spans) -> list[tuple[int, int]]:
    return list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True))
