"""UniProtKB's flat files (.dat): a text of whole entries -> records.

Format: https://web.expasy.org/docs/userman.html
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protein_lm.io.raw_records import RawRecords, RecordMark
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED, Annotations, Memberships, Spans

MARK, KEPT = b"\n//\n", 4
"""Mark at which `text.whole_records` cuts, and the bytes of it that stay with the record before."""
_STATUS = {b"Reviewed;": REVIEWED, b"STANDARD;": REVIEWED, b"Unreviewed;": UNREVIEWED, b"PRELIMINARY;": UNREVIEWED}
_TAXON = re.compile(rb"\nOX   NCBI_TaxID=(\d{1,10})")
_EXISTENCE = re.compile(rb"\nPE   ([1-5]):")
_FLAGS = re.compile(rb"\nDE   (?:Flags:.*Fragments?[;. ]|.*\((?i:FRAGMENTS?)\))")
_NAME = re.compile(rb"\nDE   (?:RecName: Full=|SubName: Full=)?([^;{\n]*)")
_SPECIES = re.compile(rb"\nOS   ([^\n]*)")
_ENDING = RecordMark(re.compile(rb"//"), "a line with more than // does not end its entry; give // a line of its own")
_CUT_OFF = "the file ends inside this entry, without its line //; fetch the file again"
_NEXT_ENTRY = b"\nID   "
_END = re.compile(re.escape(MARK))
_FAMILY = re.compile(rb"\nDR   Pfam; ([^;\n]*)")


def parse(text: bytes, first_line: int, path: Path, families: Sequence[str] = ()) -> RawRecords:
    """Read the entries of a text, each ended by a line `//`. Text after the last such line is an entry too.

    If there are `families`, accessions of Pfam, the entries' memberships in them are read too.
    """
    entries, line = [], first_line
    start = 0
    while start < len(text):
        stop = text.find(MARK, start)
        end = len(text) if stop < 0 else stop + KEPT
        if stop < 0 and not text[start:].strip():
            break
        blanks = len(text[start : start + 64]) - len(text[start : start + 64].lstrip(b"\n"))
        entries.append(entry := _Entry(text, start + blanks, end, line + blanks, is_whole=stop >= 0))
        line = entry.next_line
        start = end
    bodies = np.array([entry.body for entry in entries], dtype=np.int64).reshape(-1, 2)
    return RawRecords(
        path=path,
        sequence_ids=Spans.of([entry.sequence_id for entry in entries]),
        lines=np.array([entry.line for entry in entries], dtype=np.int64),
        bodies=Spans(text, bodies[:, 0], bodies[:, 1]),
        body_lines=np.array([entry.body_line for entry in entries], dtype=np.int64),
        num_layout=np.array([entry.num_layout for entry in entries], dtype=np.int64),
        annotations=Annotations.of(entries),
        memberships=memberships(text, families) if families else None,
        layout=b" \n",
        mark=_ENDING,
        faults={number: entry.fault for number, entry in enumerate(entries) if entry.fault},
    )


def memberships(text: bytes, families: Sequence[str]) -> Memberships:
    """Memberships of a text's entries in families, accessions of Pfam, by their cross-references."""
    numbers = {family.encode(): number for number, family in enumerate(families)}
    found = [(line.start(), numbers[line[1]]) for line in _FAMILY.finditer(text) if line[1] in numbers]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    ends = np.fromiter((mark.start() for mark in _END.finditer(text)), dtype=np.int64)
    return Memberships(np.searchsorted(ends, pairs[:, 0], side="right"), pairs[:, 1])


class _Entry:
    """An entry, `text[start:end]`."""

    cluster_size = 0

    def __init__(self, text: bytes, start: int, end: int, line: int, *, is_whole: bool) -> None:
        self.line, self.fault = line, ""
        entry = text[start:end]
        first, _, _ = entry.partition(b"\n")
        words = first.split()
        name = words[1] if len(words) > 1 else b""
        accession = _field(entry, b"\nAC   ", b";")
        self.sequence_id = accession or name
        status = words[2] if len(words) > 2 else b""
        self.flags = _STATUS.get(status, 0) | (FRAGMENT if _FLAGS.search(entry) else 0)
        taxon = int(found[1]) if (found := _TAXON.search(entry)) else 0
        self.taxon_id = taxon if taxon < 2**31 else 0
        self.protein_existence = int(found[1]) if (found := _EXISTENCE.search(entry)) else 0
        next_at = entry.find(_NEXT_ENTRY)
        sequence_at = entry.find(b"\nSQ   ")
        body = entry.find(b"\n", sequence_at + 1) if sequence_at >= 0 else len(entry)
        stop = len(entry) - len(b"//\n") if is_whole else len(entry)
        body = min(body, stop)
        self.body = start + body, start + stop
        self.body_line = line + entry.count(b"\n", 0, body)
        num_lines = entry.count(b"\n", body, stop)
        self.next_line = self.body_line + num_lines + 1
        self.num_layout = num_lines + entry.count(b" ", body, stop)
        if not first.startswith(b"ID   "):
            self.fault = f"an entry begins with {first[:20].decode('utf-8', 'replace')!r}, not with its ID line"
        elif next_at >= 0:
            number = line + 1 + entry.count(b"\n", 0, next_at)
            self.fault = f"another entry begins in line {number}, without a line // before it; put one there"
        elif not is_whole:
            is_there = b"//" in entry.rstrip().rpartition(b"\n")[2]
            self.fault = _ENDING.fault if is_there else _CUT_OFF
        elif not accession:
            self.fault = "the entry has no AC line with an accession; correct or remove it"
        elif sequence_at < 0:
            self.fault = "the entry has no SQ line; correct or remove it"
        elif not entry.isascii():
            self.fault = _fault_of_encoding(accession, name, entry)


def _fault_of_encoding(accession: bytes, name: bytes, entry: bytes) -> str:
    """The fault of an entry whose names are not UTF-8; empty if they are."""
    for part in (accession, name, *(found[1] for pattern in (_NAME, _SPECIES) if (found := pattern.search(entry)))):
        try:
            part.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"byte 0x{part[error.start]:02X} in its name is not UTF-8; save the file as UTF-8"
    return ""


def _field(entry: bytes, key: bytes, stop: bytes) -> bytes:
    start = entry.find(key)
    if start < 0:
        return b""
    line = entry[start + len(key) : entry.find(b"\n", start + 1)]
    return line.partition(stop)[0].strip()
