"""Reads text tables row by row: the one reader of all tables with commas, semicolons or tabs between their cells."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn, TypeVar

from protein_lm.errors import InputError
from protein_lm.files.guessed_format import describe_format
from protein_lm.files.sources import Source
from protein_lm.files.text import as_utf8, beginning, unix_lines

_DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon"}
_LONGEST_HEADING = 2**16
_LONGEST_CELL = 2**27
_LONGEST_LINE = 2**28
_BLANKS = " \t\v\f"
_SHOWN_LETTERS = 40
_SHOWN_NAMES = 10
_QUOTE = b'"'
FASTA_MARK = b">"
"""Begins FASTA, whose headers may have commas, and no table."""

_ROWS_AT_ONCE = 2**16

Row = tuple[int, list[str], str]
"""Line where a row begins, its cells, and the fault in their number (empty: none)."""
Rows = TypeVar("Rows")


def split_heading(text: bytes, wanted: Collection[str] = ()) -> tuple[list[str], str]:
    r"""Return the cells of the first row, without blanks around them, and the delimiter, given a table's beginning.

    The delimiter is the one of comma, tab and semicolon that gives most of the columns wanted. Among equals it is the tab,
    or else the one that gives most cells.

    >>> split_heading(b"sequence;score, in nats\n")
    (['sequence;score', 'in nats'], ',')
    >>> split_heading(b"sequence;score, in nats\n", wanted=["sequence"])
    (['sequence', 'score, in nats'], ';')
    """
    heading, candidates = _first_row(text).decode("utf-8", "replace"), []
    for delimiter in _DELIMITERS:
        try:
            row = next(csv.reader(io.StringIO(heading, newline="\n"), delimiter=delimiter), [])
        except csv.Error:
            row = []
        cells = [cell.strip() for cell in row]
        rank = (len({*wanted} & {*cells}), delimiter == "\t" and len(cells) > 1, len(cells))
        candidates.append((rank, cells, delimiter))
    _, cells, delimiter = max(candidates, key=lambda each: each[0])
    return cells, delimiter


def _first_row(text: bytes) -> bytes:
    """Return the first line, with the lines behind it that a quoted cell spans."""
    end = 0
    while end < _LONGEST_HEADING:
        end = text.find(b"\n", end) + 1 or len(text)
        if text.count(_QUOTE, 0, end) % 2 == 0:
            return text[:end]
        if end == len(text):
            break
    return text.partition(b"\n")[0]


class TextTable:
    """A table whose first line is read, and whose rows are being read.

    Every row has as many cells as the first line: no column is ever taken for an index. Blank lines and empty cells behind
    the last column are ignored.
    """

    def __init__(
        self, text: bytes, line: int, blocks: Iterator[bytes], path: Path, *, wanted: Collection[str] = ()
    ) -> None:
        """Read the first line.

        Args:
            text: the beginning, from its first line that is not blank.
            line: the number of that line.
            blocks: the rest.
            path: the table's name in messages.
            wanted: columns that tell the delimiter, see `split_heading`.

        Raises:
            InputError: there is no text or no table, or the first line is not text or names nothing.
        """
        if not text:
            raise InputError(f"{path} is empty: it holds no table; give one whose first line names its columns")
        if text.startswith(FASTA_MARK):
            raise InputError(f"{path} looks like FASTA; give a table whose first line names its columns")
        self.path, self.first_line = path, line
        self._beginning = text[:_SHOWN_LETTERS]
        self._blocks = _whole_lines(chain([text], blocks))
        self._pending, self._offset, self._line = b"", 0, line
        names, self.delimiter = split_heading(text, wanted)
        if len(names) == 1 and ".tsv" in map(str.lower, path.suffixes):  # a heading that cannot tell
            self.delimiter = "\t"
        _, cells, _ = next(self._parse(iter(self._take_line, None), line, width=None))
        while cells and not cells[-1].strip():
            cells.pop()
        if not cells:
            raise InputError(f"{path}, line {line}: no column has a name; name them in the first line")
        self.cells = cells
        """Cells of the first line, without empty ones at its end."""
        self.names = [cell.strip() for cell in cells]

    @classmethod
    def of(cls, source: Source, *, wanted: Collection[str] = ()) -> "TextTable":
        """Begin to read an open file.

        Raises:
            InputError: as the constructor, or the file cannot be read.
        """
        return cls.of_blocks(source.blocks(), source.shown, wanted=wanted)

    @classmethod
    def of_blocks(cls, raw: Iterator[bytes], path: Path, *, wanted: Collection[str] = ()) -> "TextTable":
        """Begin to read the contents of a file, as `of`."""
        blocks = unix_lines(as_utf8(raw, path))
        text, line = beginning(blocks)
        return cls(text, line, blocks, path, wanted=wanted)

    def check_names(self) -> None:
        """Raise InputError if two columns have one name."""
        seen = set()
        for name in self.names:
            if name and name in seen:
                shown = shown_names([name])
                raise InputError(
                    f"{self.path}, line {self.first_line}: two columns are called {shown}; rename one of them"
                )
            seen.add(name)

    def column_indices(self, columns: Sequence[str], remedy: str) -> list[int]:
        """Return the indices of columns.

        Raises:
            InputError: one is missing, and `remedy` ends the message; or two columns have one name.
        """
        self.check_names()
        if missing := [name for name in columns if name not in self.names]:
            raise InputError(
                f"{self.path} has no column {' and no column '.join(missing)}; {self.what_it_is()}; {remedy}"
            )
        return [self.names.index(name) for name in columns]

    def what_it_is(self) -> str:
        """Say what the file seems to be, for a message about columns that it lacks."""
        looks = describe_format(self._beginning) if len(self.names) == 1 else None
        return f"it looks like {looks}" if looks else f"it has {shown_names(self.names)}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows that were not read yet; a row with another number of cells than the first line comes with its fault.

        Raises:
            InputError: bytes that are not text, or quotes at fault.
        """
        return self._parse(self._lines(), self._line, width=len(self.cells))

    def whole_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield line and cells of the rows that were not read yet.

        Raises:
            InputError: as `rows`, or a row has another number of cells than the first line.
        """
        return self._whole(self.rows())

    def read(
        self,
        quick: Callable[[bytes], Rows | None],
        exact: Callable[[Iterable[tuple[int, list[str]]]], Rows],
        *,
        has_heading: bool,
    ) -> Iterator[Rows]:
        """Yield what one of two readers makes of the rows, many rows at a time.

        Args:
            quick: reads a block of whole rows without quotes (UTF-8); None if it must be read row by row.
            exact: reads rows, given the line and the cells of each.
            has_heading: whether the first line holds names; otherwise it is a row.

        Raises:
            InputError: as `whole_rows`.
        """
        if not has_heading:
            yield exact([(self.first_line, self.cells)])
        while block := self._take_block():  # whole lines: without quotes, whole rows
            if _QUOTE in block:
                self._pending = block
                break
            line = self._line
            self._decode(block, line)  # refuses what is not text
            self._line += block.count(b"\n")
            found = quick(block)
            if found is None:
                found = exact(self._whole(self._parse(self._decoded(block, line), line, width=len(self.cells))))
            yield found
        rows = self.whole_rows()
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            yield exact(part)

    def _whole(self, rows: Iterator[Row]) -> Iterator[tuple[int, list[str]]]:
        for line, cells, fault in rows:
            if fault:
                raise InputError(f"{self.path}, line {line}: {fault}")
            yield line, cells

    def _parse(self, lines: Iterable[str], first_line: int, *, width: int | None) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        # `end` is the line after a row: a quoted cell may span lines, which only the csv reader counts
        end, usual = first_line, width if width != 1 else None  # a row of one cell may be a blank line
        try:
            for cells in reader:
                line, end = end, first_line + reader.line_num
                if len(cells) == usual:
                    yield line, cells, ""
                elif cells and (len(cells) > 1 or not cells[0] or cells[0].strip(_BLANKS)):
                    yield line, cells[:width], "" if width is None else self._fault(cells, width)
        except csv.Error as error:
            raise InputError(f"{self.path}, line {end}: {_quote_fault(str(error))}; correct the table") from error

    def _fault(self, cells: list[str], width: int) -> str:
        """Return the fault in the number of cells of a row, empty if there is none."""
        if len(cells) < width:
            return f"{len(cells):,} of {width:,} columns; complete the row"
        if (surplus := next((cell for cell in cells[width:] if cell.strip()), None)) is None:
            return ""
        return (
            f"{len(cells):,} cells for {width:,} columns, {surplus[:_SHOWN_LETTERS]!r} behind the last; name the column in "
            f"the first line, or put cells that hold {_DELIMITERS[self.delimiter]} into quotes"
        )

    def _take_line(self) -> str | None:
        if self._offset >= len(self._pending):
            self._pending, self._offset = self._take_block(), 0
            if not self._pending:
                return None
        start, self._offset = self._offset, self._pending.find(b"\n", self._offset) + 1 or len(self._pending)
        self._line += 1
        return self._decode(self._pending[start : self._offset], self._line - 1)

    def _take_block(self) -> bytes:
        """Return the rest of the block that a line was taken from, or the next one; empty at the end."""
        block, self._pending, self._offset = self._pending[self._offset :], b"", 0
        return block or self._next_block()

    def _next_block(self) -> bytes:
        block = next(self._blocks, b"")
        if (offset := block.find(b"\0")) >= 0:
            self._refuse_bytes(block, offset, self._line, "a NUL byte, so this is no text, or UTF-16 without its mark")
        if len(block) > _LONGEST_LINE and (offset := _long_line(block)) >= 0:
            self._refuse_bytes(
                block, offset, self._line, f"over {_LONGEST_LINE:,} bytes in one line, so this is no table"
            )
        return block

    def _lines(self) -> Iterator[str]:
        while block := self._take_block():
            line = self._line
            self._line += block.count(b"\n")
            yield from self._decoded(block, line)

    def _decoded(self, block: bytes, line: int) -> Iterator[str]:
        return iter(io.StringIO(self._decode(block, line), newline="\n"))

    def _decode(self, block: bytes, line: int) -> str:
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            self._refuse_bytes(block, error.start, line, "not UTF-8")

    def _refuse_bytes(self, block: bytes, offset: int, line: int, fault: str) -> NoReturn:
        line += block.count(b"\n", 0, offset)
        is_binary = line == self.first_line or block[offset] == 0
        if is_binary and (looks := describe_format(self._beginning)):
            raise InputError(f"{self.path} looks like {looks}; give a table of text, with tabs, commas or semicolons")
        raise InputError(f"{self.path}, line {line}: {fault}; save the file as UTF-8")


def shown_names(names: Sequence[str]) -> str:
    """Join names of columns for a message, which stays one line."""
    cut = (name[:_SHOWN_LETTERS] for name in names[:_SHOWN_NAMES])
    shown = ", ".join(name if name.isprintable() else repr(name) for name in cut)
    return shown + (", ..." if len(names) > _SHOWN_NAMES else "")


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut a text behind line feeds; a line of over `_LONGEST_LINE` bytes is cut too, so that it can be refused."""
    held: list[bytes] = []  # pieces of a line that no line feed has ended yet
    num_held = 0
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join((*held, block[:cut]))
            held, num_held = [], 0
        if cut < len(block):
            held.append(block[cut:])
            num_held += len(block) - cut
        if num_held > _LONGEST_LINE:
            yield b"".join(held)
            held, num_held = [], 0
    if held:
        yield b"".join(held)


def _long_line(block: bytes) -> int:
    """Return the offset where a line of over `_LONGEST_LINE` bytes begins; -1 if none does."""
    start = 0
    while len(block) - start > _LONGEST_LINE:
        end = block.rfind(b"\n", start, start + _LONGEST_LINE) + 1
        if not end:
            return start
        start = end
    return -1


def _quote_fault(message: str) -> str:
    if "unexpected end" in message:
        return "a quote is opened in this row and never closed"
    if "field larger" in message:
        return f"a cell of over {_LONGEST_CELL:,} characters, or a quote that is never closed"
    if "expected after" in message:
        return "letters follow a closing quote; a quote inside a quoted cell is written twice"
    return message
