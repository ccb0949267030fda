"""One residue policy, wherever a sequence is written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protein_lm import alphabet
from protein_lm.batches.labels import read_sequence_table
from protein_lm.choices import LongPolicy
from protein_lm.errors import InputError
from protein_lm.inference.generate import read_prefixes
from protein_lm.inference.templates import read_templates
from protein_lm.io.proteins import is_path, records
from protein_lm.io.readers import read_records
from protein_lm.io.residues import describe_letter, read_residues, residues_of
from protein_lm.io.variants.assays import read_assays
from protein_lm.io.variants.variant_table import read_variants
from tests.conftest import write_fasta

AS_WRITTEN = {
    "MKT*": "MKT",
    "mkt": "MKT",
    "MK T": "MKT",
    " MKT\t": "MKT",
    "M-K.T*-": "MKT",
    "mkj": "MKX",
    "BUZOX": "BUZOX",
}
FAULTS = {
    "MK1T": "'1' at position 3 is not a residue letter",
    "M K-1": "'1' at position 4 is not a residue letter",
    "M*K": "a stop '*' at position 2, before its end",
    "MK**": "a stop '*' at position 3, before its end",
    "MKé": "'é' at position 3 is not a residue letter",
    "MK\N{NO-BREAK SPACE}T": r"'\xa0' at position 3 is not a residue letter",
}


def by_the_rule(text: str) -> str | None:
    """The residue letters of a text, None if it is refused; written once more, letter by letter."""
    kept = [letter for letter in text if letter not in " \t\v\f\r\n-."]
    if kept and kept[-1] == "*":
        del kept[-1]
    if not kept or not all(letter.isascii() and letter.isalpha() for letter in kept):
        return None
    return "".join(kept).upper().replace("J", "X")


anything = st.text(st.sampled_from("MKABXZOUJmkj*-. \t\v\f") | st.characters(codec="utf-8"), max_size=12)


@example(text="MK*\n-")
@example(text="*M")
@example(text="ß")
@given(text=anything)
def test_residues_and_their_places(text) -> None:
    expected = by_the_rule(text)
    if expected is None:
        with pytest.raises(ValueError, match=r"^no residues$| at position \d+"):
            residues_of(text)
        return
    found = residues_of(text)
    assert alphabet.decode(found.tokens) == expected
    assert "".join(text[place] for place in found.letter_indices).upper().replace("J", "X") == expected
    assert not found.tokens.flags.writeable


# A sequence in a file of lines; how files treat quotes, headings and line ends is for the tests of their readers.
NOT_IN_A_LINE = set('\0\r\n",;>\x1a\x1c\x1d\x1e\x85\u2028\u2029\ufeff')


@settings(max_examples=60)
@given(text=anything.filter(lambda text: text.strip() and not set(text) & NOT_IN_A_LINE))
def test_readers_agree(text, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("readers")
    (folder / "in.fasta").write_bytes(f">b\n{text}\n".encode())
    (folder / "in.csv").write_bytes(f"sequence_id,sequence\nb,{text}\n".encode())
    readers = [
        lambda: next(read_records(folder / "in.fasta")).tokens,
        lambda: next(read_records(folder / "in.csv")).tokens,
        lambda: read_sequence_table(folder / "in.csv", max_residues=99, long_sequences=LongPolicy.ERROR).residues[0],
    ]
    if not is_path(text):
        readers.append(lambda: next(records({"b": text})).tokens)
    for read in readers:
        try:
            expected = residues_of(text).tokens
        except ValueError as error:
            with pytest.raises(InputError, match=re.escape(str(error))):
                read()
        else:
            assert np.array_equal(read(), expected)


def ways_to_give(text: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """How a sequence, the second of its file, may be given, each a function that gives its tokens."""
    fasta = write_fasta(folder / "in.fasta", {"a": "MKA", "b": text})
    templates = write_fasta(folder / "templates.fasta", {"b": f"_{text}"})
    table, reference, assays = folder / "in.csv", folder / "reference.csv", folder / "assays"
    table.write_text(f"sequence_id,sequence,mutated_sequence\na,MKA,MKA\nb,{text},{text}\n")
    reference.write_text(f"DMS_id,target_seq\na,MKA\nb,{text}\n")
    assays.mkdir()
    (assays / "b.csv").write_text(f"mutated_sequence,DMS_score\n{text},1\n")
    wild_type = next(records("MKT"))

    def variant() -> Any:
        found = read_variants(table, wild_type, first_residue=1)
        if found.reasons[1]:
            raise InputError(found.reasons[1])
        assert found.variants[1] is not None
        return found.variants[1].residues(wild_type.tokens)

    return {
        "FASTA": lambda: list(read_records(fasta))[1].tokens,
        "table of score": lambda: list(read_records(table))[1].tokens,
        "table of predict": lambda: read_sequence_table(
            table, max_residues=99, long_sequences=LongPolicy.ERROR
        ).residues[1],
        "Python": lambda: list(records({"a": "MK", "b": text}))[1].tokens,
        "prefix": lambda: read_prefixes(text)[0].residues,
        "template": lambda: next(read_templates(templates)).residues[1:],
        "mutated_sequence": variant,
        "reference table": lambda: read_assays(assays, reference, first_residue=1).assays[0].table.wild_type.tokens,
    }


@pytest.mark.parametrize(("text", "letters"), AS_WRITTEN.items())
def test_every_way_to_give_a_sequence(text, letters, tmp_path) -> None:
    for name, read in ways_to_give(text, tmp_path).items():
        if name in ("Python", "prefix") and is_path(text):
            continue
        if name == "mutated_sequence" and set(letters) & set("BJOUXZ"):  # variants are made of the 20 amino acids
            continue
        assert alphabet.decode(read()) == letters, name


PLACES = {
    "FASTA": "in.fasta, line 4, sequence b: ",
    "table of score": "in.csv, line 3, sequence b: ",
    "table of predict": "in.csv, row 2: ",
    "Python": "sequence b: ",
    "prefix": "prefix ",
    "template": "templates.fasta, sequence b: ",
    "mutated_sequence": "",
    "reference table": "reference.csv, row 2: target_seq: ",
}


@pytest.mark.parametrize(("text", "fault"), FAULTS.items())
def test_every_message_names_the_record_and_the_position(text, fault, tmp_path) -> None:
    for name, read in ways_to_give(text, tmp_path).items():
        if name in ("Python", "prefix") and is_path(text):
            continue
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        if name == "template":  # one letter before it
            message = re.sub(r"position (\d+)", lambda match: f"position {int(match[1]) - 1}", message)
        assert PLACES[name] in message and fault in message, name


def test_bytes_that_are_no_text() -> None:
    assert describe_letter("M\udce9", 1) == "byte 0xE9 at position 2 is not a residue letter"
    assert describe_letter("M\x7f", 1) == "byte 0x7F at position 2 is not a residue letter"
    with pytest.raises(InputError, match=r"^a.csv, row 3: '\\u2028' at position 2 is not a residue letter; mend it$"):
        read_residues("M\u2028", "a.csv, row 3", "mend it")
