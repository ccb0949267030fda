"""What rows of a table name, and why some name nothing."""

from pathlib import Path

import numpy as np
import pytest

from protein_lm import alphabet
from protein_lm.data.records import SequenceRecord
from protein_lm.data.variants import Variant, all_substitutions, hint, name_of, read_variants
from protein_lm.errors import InputError

WILD_TYPE = SequenceRecord("P1", alphabet.encode("MKXAYIAKQR"), 1)
A, C = alphabet.TOKENS.index("A"), alphabet.TOKENS.index("C")


def read(path: Path, text: str, **changes):
    path.write_text(text, encoding="utf-8")
    return read_variants(path, WILD_TYPE, **{"first_residue": 24, "max_residues": 12} | changes)


def test_rows_of_every_kind(tmp_path) -> None:
    rows = {
        "M24C": (Variant(((0, C),)), ""),
        " m24c:K25A ": (Variant(((0, C), (1, A))), ""),
        "K25A:M24C": (Variant(((0, C), (1, A))), ""),
        "A27A": (Variant(), ""),
        "A27A:M24C": (Variant(((0, C),)), ""),
        "K24A": (None, "the sequence has M at position 24, not K"),
        "M23C": (None, "position 23 is outside the sequence, which runs from 24 to 33"),
        "M-5C": (None, "position -5 is outside the sequence, which runs from 24 to 33"),
        "X26A": (None, "X26A is no exchange of one of the 20 amino acids for another"),
        "M24X": (None, "M24X is no exchange of one of the 20 amino acids for another"),
        "M24*": (None, "M24* is no exchange of one of the 20 amino acids for another"),
        "M24C:M24A": (None, "position 24 is named twice"),
        "M24C:": (None, "'' is no substitution such as A42G"),
        "p.Met24Cys": (None, "'P.MET24CYS' is no substitution such as A42G"),
        "M24": (None, "'M24' is no substitution such as A42G"),
        "": (None, "the row names no variant"),
        "M" + 9 * "9" + "9C": (None, "'M9999999999C' is no substitution such as A42G"),
        "x" * 300: (None, f"{'X' * 40!r} is no substitution such as A42G"),
        '"<b>../etc, ""quoted"""': (None, "'<B>../ETC, \"QUOTED\"' is no substitution such as A42G"),
    }
    table = read(tmp_path / "t.csv", "mutant,DMS_score\n" + "".join(f"{name},1\n" for name in rows))
    assert list(zip(table.variants, table.reasons, strict=True)) == list(rows.values())


def test_whole_sequences(tmp_path) -> None:
    rows = {
        ",CKXAYIAKQR": (Variant(((0, C),)), ""),
        ",MKXAYIAKQR": (Variant(), ""),
        "M24C,CKXAYIAKQR": (Variant(((0, C),)), ""),
        "M24C,AKXAYIAKQR": (None, "mutant and mutated_sequence do not name the same protein"),
        "MKXAYI,MKXAYI": (Variant(rewritten=alphabet.encode("MKXAYI").tobytes()), ""),
        ",MKXAYIACKQRC": (Variant(rewritten=alphabet.encode("MKXAYIACKQRC").tobytes()), ""),
        ",MKXAYIAKQRCCC": (None, "13 residues; this model reads 12"),
        ",MKAYIAKQR": (None, "what changes is not made of the 20 amino acids alone"),
        ",MKXAYIAKQRX": (None, "what changes is not made of the 20 amino acids alone"),
        ",MK-AYIAKQR": (None, "what changes is not made of the 20 amino acids alone"),
        ",mkxayiakqc-.*": (Variant(((9, C),)), ""),
        ",MK1AYIAKQR": (None, "'1' at position 3 is not a residue letter"),
        ",-": (None, "no residues"),
    }
    table = read(tmp_path / "t.csv", "mutant,mutated_sequence\n" + "".join(f"{row}\n" for row in rows))
    assert list(zip(table.variants, table.reasons, strict=True)) == list(rows.values())
    assert [v.first_place(WILD_TYPE.tokens) for v in table.variants if v] == [0, 10, 0, 6, 7, 9]


def test_another_offset_is_proposed_where_all_rows_would_fit(tmp_path) -> None:
    table = read(tmp_path / "t.csv", "mutant\nK2A:Q9A\nM24C\n")
    assert table.variants[0] is None and not hint(table), "no one offset fits"
    with pytest.raises(
        InputError, match=r"no row names a variant of P1; row 1: position 2 is .*; with --offset-idx 1 all"
    ):
        read(tmp_path / "u.csv", "mutant\nK2A:Q9A\nM1C\n")


def test_tables_that_cannot_be_read(tmp_path) -> None:
    for text, fault in (
        ("mutant,DMS_score\n", "has no rows; add some"),
        ("mutant,mutant\nM24C,M24C\n", "line 1: two columns are called mutant; rename one of them"),
        ("variant\nM24C\n", "has no column mutant or mutated_sequence; it has variant; rename"),
    ):
        with pytest.raises(InputError, match=fault):
            read(tmp_path / "t.csv", text)


def test_a_scan_has_19_of_every_standard_residue_and_names_them_back(tmp_path) -> None:
    every = all_substitutions(WILD_TYPE.tokens)
    assert len(every) == len(set(every)) == 9 * 19
    names = [name_of(variant, WILD_TYPE.tokens, first_residue=-3) for variant in every]
    assert names[:2] == ["M-3A", "M-3C"] and names[-1] == "R6Y"
    table = read(tmp_path / "t.csv", "mutant\n" + "\n".join(names), first_residue=-3)
    assert table.variants == every
    changed = every[0].residues(WILD_TYPE.tokens)
    assert np.flatnonzero(changed != WILD_TYPE.tokens).tolist() == [0] and WILD_TYPE.sequence[0] == "M"
