"""The text of a source: its encoding, its lines, and blocks of whole records."""

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from protein_lm.errors import InputError
from protein_lm.native.reader import reader

_LINE_FEED = b"\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte-order marks of encodings with two or four bytes for a letter."""
_LONGEST_MARK = 4
_SNIFFED_BYTES = 4096
_COMMENT = b"#"
_BLANKS = b" \t\v\f"
_COMMENTS = re.compile(rb"(?:[ \t\v\f]*(?:#[^\n]*)?\n)*")


def as_utf8(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Turn a text with the byte-order mark of UTF-16 or UTF-32 into UTF-8; leave any other unchanged.

    Raises:
        InputError: the bytes do not fit the mark.
    """
    first = b""
    for block in blocks:
        first += block
        if len(first) >= _LONGEST_MARK:
            break
    encoding = next((name for mark, name in _WIDE if first.startswith(mark)), None)
    if encoding is None:
        yield first
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in chain([first], blocks):
            yield decoder.decode(block).encode()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged {encoding} text ({error.reason}); save the file as UTF-8") from error


def unix_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Make every line, even the last, end in a line feed; Windows and old Macintosh files have carriage returns."""
    held = b""
    for block in blocks:
        text = held + block
        held = b"\r" if text.endswith(b"\r") else b""  # its line feed may be the next block's first byte
        if b"\r" in text:
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text:
            yield text
    yield _LINE_FEED


def beginning(blocks: Iterator[bytes]) -> tuple[bytes, int]:
    """Return the text from its first line that is not blank, and that line's number.

    The text is long enough to tell its format, or empty if there is no such line. Blanks before the line's first letter
    stay: a tab may follow an empty cell.
    """
    text, line, is_start = b"", 1, True
    for block in blocks:
        text += block
        if is_start and len(text) < len(_BYTE_ORDER_MARK):
            continue
        if is_start:
            text, is_start = text.removeprefix(_BYTE_ORDER_MARK), False
        text, line = _from_first_line(text, line)
        if len(text) >= _SNIFFED_BYTES:
            if not text.isspace():
                break
            text = text[-_SNIFFED_BYTES:]
    text, line = _from_first_line(text, line)  # again: a text may be too short for the mark
    return b"" if text.isspace() else text, line


def _from_first_line(text: bytes, line: int) -> tuple[bytes, int]:
    """Cut off the blank lines at the start of a text whose first line has number `line`."""
    num_blanks = len(text) - len(text.lstrip())
    start = text.rfind(_LINE_FEED, 0, num_blanks) + 1
    return text[start:], line + text.count(_LINE_FEED, 0, start)


def without_comments(text: bytes, line: int, blocks: Iterator[bytes]) -> tuple[bytes, int]:
    r"""Skip lines that begin with `#` and blank lines; return some text behind them, and the number of its first line.

    Args:
        text: the beginning of the text.
        line: the number of its first line.
        blocks: the rest, taken as far as need be.

    >>> without_comments(b"#59\t1\n", 1, iter([b"#\n\n", b">a\nMK\n"]))
    (b'>a\nMK\n', 4)
    """
    while True:
        found = _COMMENTS.match(text)
        assert found is not None  # it matches nothing too
        line += text.count(_LINE_FEED, 0, found.end())
        text = text[found.end() :].lstrip(_BLANKS)
        if text and not text.startswith(_COMMENT):
            return text, line
        if not (block := next(blocks, b"")):
            return text, line
        text = text[:1] + block  # if a comment extends into the block, its mark is enough


@dataclass(frozen=True, slots=True)
class Text:
    """Whole records of a file in one piece or two, so that a block need not be copied."""

    head: bytes
    body: bytes | memoryview = b""

    def join(self) -> bytes:
        """Return it in one piece."""
        return b"".join((self.head, self.body)) if self.body else self.head

    def count(self, byte: bytes) -> int:
        """Count a byte."""
        return reader().count(self.head, byte) + reader().count(self.body, byte)

    def __reduce__(self) -> tuple[type["Text"], tuple[bytes]]:
        return Text, (self.join(),)


def whole_records(first: bytes, blocks: Iterator[bytes], mark: bytes, kept: int) -> Iterator[Text]:
    r"""Yield a text cut into whole records, at a mark between records; `kept` bytes of the mark belong to the earlier one.

    Each yielded text ends at the last mark of a block, so that it has many records.

    >>> [text.join() for text in whole_records(b">a\nM", iter([b"K\n>b\n", b"M\n"]), b"\n>", 1)]
    [b'>a\nMK\n', b'>b\nM\n']
    """
    overlap = len(mark) - 1  # a mark may begin in one block and end in the next
    pending, tail = [memoryview(first)], first[-overlap:]  # since the last cut: all blocks, and their last bytes
    for block in blocks:
        rest = view = memoryview(block)
        if (last := block.rfind(mark)) >= 0:
            start, cut = block.find(mark) + kept, last + kept
            yield Text(b"".join((*pending, view[:start])), view[start:cut])
            pending, rest = [], view[cut:]
        elif (last := (tail + block[:overlap]).rfind(mark)) >= 0:
            cut = last + kept - len(tail)
            yield Text(b"".join((*pending, view[:cut])))
            pending, rest = [], view[cut:]
        pending.append(rest)
        tail = (tail + block)[-overlap:] if len(block) < overlap else block[-overlap:]
    yield Text(b"".join(pending))


class JoinedBlocks(io.RawIOBase):
    """The beginning of a text and the blocks behind it as a file, for libraries that read files."""

    def __init__(self, first: bytes, blocks: Iterator[bytes]) -> None:
        self._pending, self._blocks = memoryview(first), blocks  # a view is cut without a copy

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._pending:
            try:
                self._pending = memoryview(next(self._blocks))
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size
