"""Any sequence file -> records. The contents tell the format, not the name.

One parser per format serves `data prepare`, which needs blocks, and scoring, which needs records.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.errors import InputError
from protein_lm.files.guessed_format import describe_format
from protein_lm.files.parquet_table import MAGIC
from protein_lm.files.sources import Source
from protein_lm.files.text import Text, as_utf8, beginning, unix_lines, whole_records, without_comments
from protein_lm.io import compiled_reader as compiled
from protein_lm.io import fasta, flat_file, xml_file
from protein_lm.io import sequence_table as table_file
from protein_lm.io.raw_records import RawRecords
from protein_lm.io.records import Columns, Memberships, RecordBlock, SequenceRecord
from protein_lm.native.numpy_reader import CompiledFormat

FORMATS = "FASTA, a UniProtKB flat file, UniProtKB or UniRef XML, or a table with columns sequence_id and sequence"
_SHOWN_LETTERS = 40


@dataclass(frozen=True, slots=True)
class TextFormat:
    """A format whose text is cut where records begin."""

    parse: Callable[..., RawRecords]
    """Text of whole records, number of its first line, file, and if `tells_families` the requested ones -> records."""
    mark: bytes
    kept: int
    tells_families: bool = False
    compiled: CompiledFormat | None = None
    """The compiled reader's name for it."""
    memberships: Callable[[bytes, Sequence[str]], Memberships] | None = None
    """Memberships of a text's records in families, which the compiled reader leaves out."""


FASTA = TextFormat(fasta.parse, fasta.MARK, fasta.KEPT, compiled=CompiledFormat.FASTA)
FLAT_FILE = TextFormat(
    flat_file.parse,
    flat_file.MARK,
    flat_file.KEPT,
    tells_families=True,
    compiled=CompiledFormat.FLAT_FILE,
    memberships=flat_file.memberships,
)
XML = TextFormat(xml_file.parse, xml_file.MARK, xml_file.KEPT, tells_families=True)


def read_records(path: Path) -> Iterator[SequenceRecord]:
    """The records of a sequence file, plain or compressed, one by one. Memory holds one block of the file at a time.

    Raises:
        InputError: the file cannot be read, is of no known format, or holds a record that is not a protein sequence.
    """
    with Source(path) as source:
        for block in read_blocks(source):
            records = zip(block.sequence_ids.cut(), block.sequences(), block.lines.tolist(), strict=True)
            for identifier, tokens, line in records:
                yield SequenceRecord(identifier.decode(), np.frombuffer(tokens, dtype=np.uint8), line)


def read_blocks(
    source: Source, *, policy: ResiduePolicy = ResiduePolicy.KEEP, on_error: OnError = OnError.STOP
) -> Iterator[RecordBlock]:
    """The records of an open sequence file, many at a time. `ResiduePolicy.DROP` keeps residues, as `KEEP` does.

    Raises:
        InputError: as `read_records`. With `OnError.SKIP`, records at fault are left out and counted instead.
    """
    for part in parts(source):
        block = part.block(policy, on_error)
        if block is not None:
            yield block


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive whole records of a file, as unparsed text or as rows of a table; another process may parse them."""

    path: Path
    content: Text | RawRecords
    form: TextFormat | None = None
    """Format of a text; None for rows of a table. All fields below belong to a text."""
    line: int = 0
    """Number of its first line."""
    num_lines: int = 0
    families: Sequence[str] = ()
    """Accessions of Pfam whose members are looked for, if the format tells."""

    @property
    def is_for_compiled_reader(self) -> bool:
        """Whether the compiled reader, if it is built, knows the format."""
        return self.form is not None and self.form.compiled is not None

    def columns(self, policy: ResiduePolicy) -> Columns | None:
        """The records by the compiled reader; None if it is not built, or leaves the text to the parser."""
        if self.form is None or self.form.compiled is None or not isinstance(self.content, Text):
            return None
        columns = compiled.read(self.content, self.form.compiled, self.num_lines, policy)
        if columns is not None and self.families and self.form.memberships:
            memberships = self.form.memberships(self.content.join(), self.families)
            return replace(columns, memberships=memberships)
        return columns

    def block(self, policy: ResiduePolicy, on_error: OnError) -> RecordBlock | None:
        """The records; None if there are none.

        Raises:
            InputError: a record is at fault, and `on_error` is STOP.
        """
        if isinstance(self.content, RawRecords):
            raw = self.content
        else:
            assert self.form is not None
            text = self.content.join()
            if not text or text.isspace():
                return None
            families = [self.families] if self.form.tells_families else []
            raw = self.form.parse(text, self.line, self.path, *families)
        return raw.finish(policy, on_error) if raw.lines.size else None


def parts(source: Source, families: Sequence[str] = ()) -> Iterator[Part]:
    """Cut the contents of an open sequence file between records.

    Args:
        source: the file.
        families: accessions of Pfam whose members are looked for, if the format tells.

    Raises:
        InputError: the file cannot be read, is of no known format, or is cut off.
    """
    path, raw_blocks = source.shown, source.blocks()
    first = next(raw_blocks, b"")
    if first.startswith(MAGIC):
        for _ in raw_blocks:  # it is read by name, but its bytes count as read and hashed
            pass
        if not source.is_plain_file:
            raise InputError(f"{path} is a Parquet table inside something else; write it to a file, uncompressed")
        yield from (Part(path, raw) for raw in table_file.read_parquet(path))
        return
    blocks = unix_lines(as_utf8(chain([first], raw_blocks), path))
    text, line = beginning(blocks)
    if table_file.is_table(text):
        yield from (Part(path, raw) for raw in table_file.read_text(text, line, blocks, path))
        return
    text = text.lstrip()
    if text.startswith(b"#"):
        begun, first_line = without_comments(text, line, blocks)
        if begun.startswith(b">"):  # as in a3m
            text, line = begun, first_line
    form = _recognise(text, line, path)
    is_whole = True
    for part in whole_records(text, blocks, form.mark, form.kept):
        is_whole = form is not XML or xml_file.is_closed(part.join())
        num_lines = part.count(b"\n")
        yield Part(path, part, form, line, num_lines, families)
        line += num_lines
    if not is_whole:
        raise InputError(f"{path}, line {line}: the file ends without closing its XML; fetch the file again")


def _recognise(text: bytes, line: int, path: Path) -> TextFormat:
    if not text:
        raise InputError(f"{path} is empty: it holds no sequence; give {FORMATS}")
    if text.startswith(b">"):
        return FASTA
    if text.startswith(b"ID   "):
        return FLAT_FILE
    if text.startswith(b"<") and xml_file.ROOT.search(text):
        xml_file.check_encoding(text, path)
        return XML
    if missing := table_file.missing_columns(text):
        raise InputError(f"{path} has no column {' and '.join(missing)}; it needs sequence_id and sequence")
    if looks := describe_format(text):
        raise InputError(f"{path} looks like {looks}; give {FORMATS}")
    shown = text.partition(b"\n")[0][:_SHOWN_LETTERS].decode("utf-8", "replace")
    raise InputError(f"{path}, line {line}: {shown!r} begins no known format; give {FORMATS}")
