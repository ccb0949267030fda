"""FASTA reader: blocks of text -> whole records -> token ids.

One parser serves `data prepare`, which takes blocks, and scoring, which takes records. It never walks over residues
or lines in Python: numpy finds the line ends of a block, `bytes.translate` makes token ids of its letters, and
only unusual letters are looked at again (`residues.clean`).
"""

from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import NoReturn

import numpy as np

from protein_lm.alphabet import ResiduePolicy
from protein_lm.data.formats import describe_format
from protein_lm.data.headers import sequence_id
from protein_lm.data.records import RecordBlock, SequenceRecord, Spans
from protein_lm.data.residues import clean, encode_letters, first_ambiguous, first_illegal
from protein_lm.data.sources import Source
from protein_lm.errors import InputError

_LINE_FEED, _SPACE, _HEADING, _DELETE = b"\n >\x7f"
_BAR, _S, _P, _T, _R = b"|sptr"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SNIFFED_BYTES = 512
_SHOWN_LETTERS = 40


def read_records(path: Path, *, policy: ResiduePolicy = ResiduePolicy.KEEP) -> Iterator[SequenceRecord]:
    """The records of a FASTA file, plain or gzip, one by one; memory holds one block of the file at a time.

    With `ResiduePolicy.DROP`, records with an ambiguous residue are left out.

    Raises:
        InputError: the file cannot be read, is not FASTA, or holds a record that is no protein sequence.
    """
    with Source(path) as source:
        for block in read_blocks(source, policy=policy):
            drops = block.has_ambiguous & (policy is ResiduePolicy.DROP)
            records = zip(block.headers.cut(), block.sequences(), block.lines.tolist(), strict=True)
            for header, tokens, line in compress(records, ~drops):
                yield SequenceRecord(header.decode().strip(), np.frombuffer(tokens, dtype=np.uint8), line)


def read_blocks(source: Source, *, policy: ResiduePolicy = ResiduePolicy.KEEP) -> Iterator[RecordBlock]:
    """The records of an open FASTA file, many at a time. `ResiduePolicy.DROP` only marks records, as `KEEP` does.

    Raises:
        InputError: as `read_records`.
    """
    blocks = _unix_lines(source.blocks())
    beginning, line = _first_heading(blocks, source.path)
    for text in _whole_records(beginning, blocks):
        records = _RecordText(text, line, source.path)
        yield records.parse(policy)
        line += records.num_lines


def _unix_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Make every line, the last one too, end in a line feed; Windows and old Macintosh files have carriage returns."""
    held = b""
    for block in blocks:
        text = held + block
        held = b"\r" if text.endswith(b"\r") else b""  # its line feed may be the next block's first byte
        if b"\r" in text:
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text:
            yield text
    yield b"\n"


def _whole_records(beginning: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut the text anew, where records begin."""
    pending = [memoryview(beginning)]
    ends_line = beginning.endswith(b"\n")
    for block in blocks:
        cut = block.rfind(b"\n>") + 1
        if cut or (ends_line and block[0] == _HEADING):
            yield b"".join((*pending, memoryview(block)[:cut]))
            pending = []
        pending.append(memoryview(block)[cut:])
        ends_line = block[-1] == _LINE_FEED
    yield b"".join(pending)


def _first_heading(blocks: Iterator[bytes], path: Path) -> tuple[bytes, int]:
    """The beginning of the text from its first `>` on, at least as much as tells its format, and that line's number."""
    text, line, is_start = b"", 1, True
    for block in blocks:
        text += block
        if is_start and len(text) < len(_BYTE_ORDER_MARK):
            continue
        if is_start:
            text, is_start = text.removeprefix(_BYTE_ORDER_MARK), False
        begun = text.lstrip()
        line += text.count(b"\n", 0, len(text) - len(begun))
        text = begun
        if len(text) >= _SNIFFED_BYTES:
            break
    text = text.lstrip()  # a text too short for the mark
    if not text:
        raise InputError(f"{path} is empty: it holds no sequence; give a FASTA file, plain or gzip")
    if text[0] == _HEADING:
        return text, line
    if looks := describe_format(text):
        raise InputError(f"{path} is not FASTA: it looks like {looks}; give a FASTA file, plain or gzip")
    shown = text.partition(b"\n")[0][:_SHOWN_LETTERS].decode("utf-8", "replace")
    raise InputError(f"{path}, line {line}: {shown!r} stands before the first '>'; a FASTA file begins with '>'")


class _RecordText:
    """A text of whole records, each line ended by a line feed, and where its N records lie in it."""

    def __init__(self, text: bytes, first_line: int, path: Path) -> None:
        letters = np.frombuffer(text, dtype=np.uint8)
        breaks = np.flatnonzero(letters <= _SPACE)
        line_ends = breaks[letters[breaks] == _LINE_FEED]
        line_starts = np.concatenate(([0], line_ends[:-1] + 1))
        headings = np.flatnonzero(letters[line_starts] == _HEADING)
        self._path, self._text, self._letters, self._breaks = path, text, letters, breaks
        self.num_lines = line_ends.size
        self._lines = headings + first_line
        self._num_line_feeds = np.diff(np.append(headings, line_ends.size))
        self._headers = Spans(text, line_starts[headings] + 1, line_ends[headings])
        self._bodies = Spans(text, line_ends[headings], np.append(line_starts[headings[1:]], len(text)))
        self._first_words = self._find_first_words()

    def parse(self, policy: ResiduePolicy) -> RecordBlock:
        self._check_headers()
        codes = encode_letters(b"".join(self._bodies.cut()))
        residues = clean(codes, self._bodies.ends - self._bodies.starts - self._num_line_feeds, policy)
        empty = np.flatnonzero(residues.lengths == 0)
        refused = np.flatnonzero(residues.has_ambiguous & (policy is ResiduePolicy.ERROR))
        faulty = [*empty[:1], *refused[:1], *([] if residues.illegal is None else [residues.illegal])]
        if faulty:  # the first in the file, so that the message does not depend on how the file was cut into blocks
            self._refuse(record := int(min(faulty)), is_empty=record in empty[:1])
        return RecordBlock(
            headers=self._headers,
            sequence_ids=self._identifiers(),
            lines=self._lines,
            tokens=residues.tokens,
            lengths=residues.lengths,
            has_ambiguous=residues.has_ambiguous,
            changes=residues.changes,
        )

    def _check_headers(self) -> None:
        if (blank := self._first_words.starts == self._headers.ends).any():
            line = self._lines[np.argmax(blank)]
            raise InputError(f"{self._path}, line {line}: the header has no identifier; write one after its '>'")
        if self._text.isascii():
            return
        for record, header in enumerate(self._headers.cut()):
            try:
                header.decode("utf-8")
            except UnicodeDecodeError as error:
                fault = f"byte 0x{header[error.start]:02X} in its header is not UTF-8; save the file as UTF-8"
                self._fail(record, self._lines[record], fault)

    def _find_first_words(self) -> Spans:
        """The first word of each header, empty where there is none."""
        starts, ends = self._headers.starts.copy(), self._headers.ends
        while (blank := (self._letters[starts] <= _SPACE) & (starts < ends)).any():
            starts[blank] += 1
        return Spans(self._text, starts, self._breaks[np.searchsorted(self._breaks, starts)])

    def _identifiers(self) -> Spans:
        """What `headers.sequence_id` gives, for all headers at once: the accession of `sp|accession|...`."""
        words, letters = self._first_words, self._letters
        bars = np.append(np.flatnonzero(letters == _BAR), letters.size)
        starts = words.starts + len(b"sp|")
        ends = np.minimum(bars[np.searchsorted(bars, np.minimum(starts, letters.size))], words.ends)
        first, second, third = (letters[np.minimum(words.starts + place, letters.size - 1)] for place in range(3))
        is_named = ((first == _S) & (second == _P)) | ((first == _T) & (second == _R))
        is_named &= (third == _BAR) & (starts < ends)
        return Spans(self._text, np.where(is_named, starts, words.starts), np.where(is_named, ends, words.ends))

    def _refuse(self, record: int, *, is_empty: bool) -> NoReturn:
        line = self._lines[record]
        if is_empty:
            self._fail(record, line, "no residues; remove the record or add its sequence")
        letters = self._text[self._bodies.starts[record] : self._bodies.ends[record]]
        codes = encode_letters(letters)
        is_illegal = clean(codes, np.array([len(codes)]), ResiduePolicy.KEEP).illegal is not None
        position = first_illegal(letters) if is_illegal else first_ambiguous(letters)
        self._fail(record, line + letters.count(b"\n", 0, position), _letter_fault(letters[position], is_illegal))

    def _fail(self, record: int, line: int, fault: str) -> NoReturn:
        header = self._text[self._headers.starts[record] : self._headers.ends[record]]
        name = sequence_id(header.decode("utf-8", "replace"))[:_SHOWN_LETTERS]
        raise InputError(f"{self._path}, line {line}, sequence {name}: {fault}")


def _letter_fault(byte: int, is_illegal: bool) -> str:
    if not is_illegal:
        return f"ambiguous residue {chr(byte)!r}, refused by the residue policy; choose keep, to-x or drop"
    if byte == ord("*"):
        return "a stop '*' before its end; cut the sequence there or remove the record"
    shown = repr(chr(byte)) if _SPACE <= byte < _DELETE else f"byte 0x{byte:02X}"
    return f"{shown} is not a residue letter; correct the sequence or remove the record"
