"""FASTA: a text of whole records -> records.

No Python loop runs over residues or lines: numpy finds the line ends, and `bytes.translate` makes token ids of letters.
Only unusual letters are looked at again (`residues.clean`).
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.io.headers import annotate
from protein_lm.io.raw_records import RawRecords, RecordMark
from protein_lm.io.records import Spans

MARK, KEPT = b"\n>", 1
"""Mark at which `text.whole_records` cuts, and the bytes of it that stay with the record before."""
_HEADER = RecordMark(re.compile(rb">"), "a header begins inside this line; put a line break before its '>'")
_LINE_FEED, _SPACE, _HEADING = b"\n >"
_BAR, _S, _P, _T, _R = b"|sptr"


def parse(text: bytes, first_line: int, path: Path) -> RawRecords:
    """Read the records of a text whose first line is a heading. Every line ends in a line feed."""
    letters = np.frombuffer(text, dtype=np.uint8)
    breaks = np.flatnonzero(letters <= _SPACE)
    line_ends = breaks[letters[breaks] == _LINE_FEED]
    line_starts = np.concatenate(([0], line_ends[:-1] + 1))
    headings = np.flatnonzero(letters[line_starts] == _HEADING)
    headers = Spans(text, line_starts[headings] + 1, line_ends[headings])
    words = _first_words(headers, letters, breaks)
    sequence_ids, is_knowledgebase = _identifiers(words, letters)
    raw = RawRecords(
        path=path,
        sequence_ids=sequence_ids,
        lines=headings + first_line,
        bodies=Spans(text, line_ends[headings], np.append(line_starts[headings[1:]], len(text))),
        body_lines=headings + first_line,  # a body begins with the line feed of its heading
        num_layout=np.diff(np.append(headings, line_ends.size)),
        annotations=annotate(headers, words, is_knowledgebase, letters),
        mark=_HEADER,
    )
    for record in np.flatnonzero(words.starts == headers.ends).tolist():
        raw.faults[record] = "the header has no identifier; write one after its '>'"
    if not text.isascii():
        raw.faults |= _faults_of_encoding(headers)
    return raw


def _faults_of_encoding(headers: Spans) -> dict[int, str]:
    faults = {}
    for record, header in enumerate(headers.cut()):
        try:
            header.decode("utf-8")
        except UnicodeDecodeError as error:
            faults[record] = f"byte 0x{header[error.start]:02X} in its header is not UTF-8; save the file as UTF-8"
    return faults


def _first_words(headers: Spans, letters: NDArray[np.uint8], breaks: NDArray[np.int64]) -> Spans:
    """The first word of each header, empty where there is none."""
    starts, ends = headers.starts.copy(), headers.ends
    while (blank := (letters[starts] <= _SPACE) & (starts < ends)).any():
        starts[blank] += 1
    return Spans(headers.text, starts, breaks[np.searchsorted(breaks, starts)])


def _identifiers(words: Spans, letters: NDArray[np.uint8]) -> tuple[Spans, NDArray[np.bool_]]:
    """Identifiers of all headers, as `headers.sequence_id` gives for one; and whether each is from `sp|...` or `tr|...`."""
    bars = np.append(np.flatnonzero(letters == _BAR), letters.size)
    starts = words.starts + len(b"sp|")
    ends = np.minimum(bars[np.searchsorted(bars, np.minimum(starts, letters.size))], words.ends)
    first, second, third = (letters[np.minimum(words.starts + i, letters.size - 1)] for i in range(3))
    is_named = ((first == _S) & (second == _P)) | ((first == _T) & (second == _R))
    is_named &= (third == _BAR) & (starts < ends)
    spans = Spans(words.text, np.where(is_named, starts, words.starts), np.where(is_named, ends, words.ends))
    return spans, is_named
