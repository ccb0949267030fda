"""What rows of a table name, and why some name nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_lm import alphabet
from protein_lm.errors import ConfigError, InputError
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.variant_table import (
    Variant,
    all_substitutions,
    check_first_residue,
    hint,
    name_of,
    parse_variants,
    read_variants,
)

WILD_TYPE = SequenceRecord("P1", alphabet.encode("MKXAYIAKQR"), 1)
NO_SUBSTITUTION = "is no substitution such as A42G or p.Ala42Gly (several at once: A42G:T50S)"
GIVE_WHOLE = "give the protein that comes of it in a column mutated_sequence"
A, C = alphabet.TOKENS.index("A"), alphabet.TOKENS.index("C")


def read(path: Path, text: str, *, first_residue: int = 24, is_one_of_many: bool = False):
    path.write_text(text, encoding="utf-8")
    return read_variants(path, WILD_TYPE, first_residue=first_residue, is_one_of_many=is_one_of_many)


def test_rows_of_every_kind(tmp_path) -> None:
    rows = {
        "M24C": (Variant(((0, C),)), ""),
        " m24c:K25A ": (Variant(((0, C), (1, A))), ""),
        "K25A:M24C": (Variant(((0, C), (1, A))), ""),
        "A27A": (Variant(), ""),
        "A27A:M24C": (Variant(((0, C),)), ""),
        "p.Met24Cys": (Variant(((0, C),)), ""),
        "p.[Lys25Ala;Met24Cys]": (Variant(((0, C), (1, A))), ""),
        "M24C;K25A": (Variant(((0, C), (1, A))), ""),
        "_wt": (Variant(), ""),
        "p.=": (Variant(), ""),
        "K24A": (None, "the sequence has M at position 24, not K"),
        "M23C": (None, "position 23 is outside the sequence, which runs from 24 to 33"),
        "M-5C": (None, "position -5 is outside the sequence, which runs from 24 to 33"),
        "X26A": (None, "X26A is no exchange of one of the 20 amino acids for another"),
        "M24X": (None, "M24X is no exchange of one of the 20 amino acids for another"),
        "M24*": (None, f"'M24*' is a stop, which ends the protein before position 24; {GIVE_WHOLE}"),
        "Y28del": (None, f"'Y28del' is a deletion; {GIVE_WHOLE}"),
        "M24C:M24A": (None, "position 24 is named twice"),
        "M24C:": (None, f"'' {NO_SUBSTITUTION}"),
        "M24": (None, f"'M24' {NO_SUBSTITUTION}"),
        "": (None, "the row names no variant"),
        "M" + 9 * "9" + "9C": (None, f"'M9999999999C' {NO_SUBSTITUTION}"),
        "1" * 300: (None, f"{'1' * 40!r} {NO_SUBSTITUTION}"),
        "x" * 300: (None, f"{'x' * 40!r} is a whole protein; give those in a column mutated_sequence"),
        '"<b>../etc, ""quoted"""': (None, f"'<b>..' {NO_SUBSTITUTION}"),
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
        "K25_A27del,MKAYIAKQRK": (None, "what changes is not made of the 20 amino acids alone"),
        "A27_Y28insC,MKXACYIAKQR": (Variant(rewritten=alphabet.encode("MKXACYIAKQR").tobytes()), ""),
        "M24*,": (None, f"'M24*' is a stop, which ends the protein before position 24; {GIVE_WHOLE}"),
        ",mk-XAYI.AKQR*": (Variant(), ""),
        ",--": (None, "no residues"),
        ",MKXAY1": (None, "'1' at position 6 is not a residue letter"),
        ",MKAYIAKQR": (None, "what changes is not made of the 20 amino acids alone"),
        ",MKXAYIAKQRX": (None, "what changes is not made of the 20 amino acids alone"),
        ",mkxayiakqc-.*": (Variant(((9, C),)), ""),
    }
    table = read(tmp_path / "t.csv", "mutant,mutated_sequence\n" + "".join(f"{row}\n" for row in rows))
    assert list(zip(table.variants, table.reasons, strict=True)) == list(rows.values())
    known = [variant for variant in table.variants if variant]
    assert [variant.first_difference(WILD_TYPE.tokens) for variant in known] == [0, 10, 0, 6, 7, 4, 10, 9]
    assert [each.stretch(WILD_TYPE.tokens) for each in known if not each.is_wild_type] == [
        (0, 1, 1),
        (0, 1, 1),
        (6, 10, 6),
        (7, 10, 12),
        (4, 4, 5),
        (9, 10, 10),
    ]
    assert table.has_indels and not read(tmp_path / "s.csv", "mutant\nM24C\n").has_indels


def test_another_offset_is_proposed_where_more_rows_would_fit(tmp_path) -> None:
    table = read(tmp_path / "t.csv", "mutant\nK2A:Q9A\nM24C\n")
    assert table.variants[0] is None and not hint(table), "1 of 2 rows fits either way"
    with pytest.raises(
        InputError,
        match=r"no row names a variant of P1; row 1: position 2 is .*; with --offset-idx 1, all 2 rows would fit",
    ):
        read(tmp_path / "u.csv", "mutant\nK2A:Q9A\nM1C\n")
    rows = ["K2A:Q9A", "M1C", "_wt", "R10*", "M5C:", "Y5W"]
    table = read(tmp_path / "v.csv", "mutant\n" + "".join(f"{row}\n" for row in rows))
    assert hint(table) == "; with --offset-idx 1, 4 of 6 rows would fit"
    assert hint(table, is_one_of_many=True) == "; with --offset-idx 1 and this table alone, 4 of 6 rows would fit"
    for text in ("A3C", "I29*\nI29*", "A30del", "K2A:Q9", "K2C\nK2D", "K2A\nM1C\nM24C\nX26A\nA27C\nY28C"):
        table = parse_variants(pd.DataFrame({"mutant": text.split("\n")}), WILD_TYPE, first_residue=24)
        assert any(table.reasons) and not hint(table), text


def test_the_number_of_the_first_residue_has_nine_digits_at_most() -> None:
    for number in (-999_999_999, 0, 999_999_999):
        check_first_residue(number)
    for number in (10**9, -(10**9), 10**30):
        with pytest.raises(ConfigError, match="over nine digits; give one from -999,999,999 to 999,999,999"):
            check_first_residue(number)


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
