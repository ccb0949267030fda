"""The text of a source, cut anew where its records begin."""

import io
from collections.abc import Iterator

import numpy as np

from protein_lm.native.fasta import fasta_reader

_LINE_FEED = b"\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SNIFFED_BYTES = 4096


def unix_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Make every line, the last one too, end in a line feed; Windows and old Macintosh files have carriage returns."""
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
    """The text from its first line that is not blank, at least as much as tells its format, and that line's number.

    Empty if there is no such line.
    """
    text, line, is_start = b"", 1, True
    for block in blocks:
        text += block
        if is_start and len(text) < len(_BYTE_ORDER_MARK):
            continue
        if is_start:
            text, is_start = text.removeprefix(_BYTE_ORDER_MARK), False
        begun = text.lstrip()
        line += text.count(_LINE_FEED, 0, len(text) - len(begun))
        text = begun
        if len(text) >= _SNIFFED_BYTES:
            break
    return text.lstrip(), line  # stripped again: a text may be too short for the mark


def occurrences(text: bytes, byte: bytes) -> int:
    """As `text.count(byte)`, which is several times slower where the byte is frequent, and keeps other threads waiting."""
    if (reader := fasta_reader()) is not None:
        return reader.count(text, byte)
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == byte[0]))


def whole_records(first: bytes, blocks: Iterator[bytes], mark: bytes, kept: int) -> Iterator[bytes]:
    r"""Cut a text at a mark between records, of which `kept` bytes belong to what stands before.

    >>> list(whole_records(b">a\nM", iter([b"K\n>b\n", b"M\n"]), b"\n>", 1))
    [b'>a\nMK\n', b'>b\nM\n']
    """
    overlap = len(mark) - 1
    pending, tail = [memoryview(first)], first[-overlap:]
    for block in blocks:
        if (place := block.rfind(mark)) >= 0:
            cut = place + kept
        elif (place := (tail + block[:overlap]).rfind(mark)) >= 0:
            cut = place + kept - len(tail)
        else:
            cut = None
        if cut is not None:
            yield b"".join((*pending, memoryview(block)[:cut]))
            pending = []
        pending.append(memoryview(block)[cut or 0 :])
        tail = (tail + block)[-overlap:] if len(block) < overlap else block[-overlap:]
    yield b"".join(pending)


class JoinedBlocks(io.RawIOBase):
    """A text's beginning and the blocks behind it as a file, for libraries that read files."""

    def __init__(self, first: bytes, blocks: Iterator[bytes]) -> None:
        self._pending, self._blocks = memoryview(first), blocks  # a view: what is left is cut without a copy

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
