"""Names of variants in the notations that tables have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.io.variants.names import OtherChange, read_name

ONE, TWO = ("A42G",), ("A42G", "T50S")
GIVE_WHOLE = "give the protein that comes of it in a column mutated_sequence"


def names(text: str) -> tuple[str, ...]:
    return tuple(f"{own}{number}{other}" for own, number, other in read_name(text))


@pytest.mark.parametrize(
    "text, expected",
    [
        *((text, ONE) for text in ("A42G", " a42g ", "p.A42G", "p.Ala42Gly", "p.ALA42GLY", "p.(Ala42Gly)", "[A42G]")),
        *((text, ONE) for text in ("NP_009225.1:p.Ala42Gly", "ENSP00000357654:p.(Ala42Gly)", "P38398:p.A42G")),
        *((f"A42G{separator}T50S", TWO) for separator in (*":;,/+|&_ ", " : ", ", ", " + ")),
        *((text, TWO) for text in ("p.[Ala42Gly;Thr50Ser]", "p.[(Ala42Gly;Thr50Ser)]", "p.[(Ala42Gly);(Thr50Ser)]")),
        *((text, TWO) for text in ("p.A42G:p.T50S", "p.A42G,p.T50S", "A42G:p.Thr50Ser", "(A42G);(T50S)")),
        *(
            (text, ())
            for text in ("WT", "wt", "_wt", "_sy", "wild type", "Wild-type", "p.=", "p.(=)", "=", "NP_1234.5:p.=")
        ),
        ("p.Met1Val", ("M1V",)),
        ("M-5V", ("M-5V",)),
        ("p.Ala42=", ("A42A",)),
    ],
)
def test_substitutions_in_every_notation(text, expected) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    "text, what",
    [
        *(
            (text, "is a stop, which ends the protein before position 29")
            for text in ("I29*", "p.Ile29Ter", "p.(Ile29*)")
        ),
        *(
            (text, "is a deletion")
            for text in ("A30del", "p.Ala30del", "p.Ala30_Lys33del", "A30-", "ΔA30", "A42G:A30del")
        ),
        *((text, "is an insertion") for text in ("p.Lys2_Met3insGln", "K2_M3insQ", "A42insGG")),
        *((text, "is a deletion with an insertion") for text in ("p.Cys28delinsTrpVal", "C28_A30delinsW")),
        *((text, "is a frameshift") for text in ("p.Arg97ProfsTer23", "p.Arg97fs", "R97fs*23")),
        *((text, "is a duplication") for text in ("p.Ala3dup", "p.Ala3_Ser5dup", "p.Ala2[10]")),
        *((text, "is an extension") for text in ("p.Met1ext-5", "p.Ter110GlnextTer17", "*110Q")),
    ],
)
def test_other_changes_are_named_and_want_the_protein(text, what) -> None:
    with pytest.raises(OtherChange) as raised:
        read_name(text)
    assert what in str(raised.value) and str(raised.value).endswith(GIVE_WHOLE)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("c.76A>G", "'c.76A>G' is a change of DNA or RNA; name that of the protein, such as p.Ala42Gly"),
        ("NM_004006.2:c.4375C>T", "is a change of DNA or RNA"),
        ("p.[Ala42Gly];[Thr50Ser]", "has '];[', by which HGVS says"),
        ("p.[Ala42Gly(;)Thr50Ser]", r"has '(;)', by which HGVS says"),
        ("p.[Ala42Gly,Thr50Ser]", "has ',', by which HGVS says"),
        ("p.(Gly56Ala^Cys)", "has '^', by which HGVS says"),
        ("p.?", "'?' says that what becomes of the protein is not known"),
        ("p.0", "'0' says that what becomes of the protein is not known"),
        ("p.Met1?", "'Met1?' says that what becomes of the protein is not known"),
        ("A42G:T50S,K3L", "'A42G:T50S,K3L' has more than one kind of separator; write A42G:T50S"),
        ("A42G-T50S", "'A42G-T50S' is no substitution such as A42G or p.Ala42Gly (several at once: A42G:T50S)"),
        ("A42G/T", "'T' is no substitution"),
        ("A42", "'A42' is no substitution"),
        ("p.", "'' is no substitution"),
        ("", "'' is no substitution"),
        ("MKTAYIAKQRQISFVK", "'MKTAYIAKQRQISFVK' is a whole protein; give those in a column mutated_sequence"),
        ("A42X", "A42X is no exchange of one of the 20 amino acids for another"),
        ("p.Sec42Ala", "Sec42Ala is no exchange of one of the 20 amino acids for another"),
        ("A42G:T50S:A42S", "position 42 is named twice"),
        ("A42G:A42G", "position 42 is named twice"),
    ],
)
def test_what_no_substitutions_are(text, fault) -> None:
    with pytest.raises(ValueError) as raised:
        read_name(text)
    assert fault in str(raised.value) and not isinstance(raised.value, OtherChange)


@given(st.one_of(st.text(), st.text("Aag42GlyTer*=?[]();:,/+_.p-\u017f\u212a\u0664\x85\x00 ")))
def test_any_text_is_read_or_refused_in_a_short_line(text) -> None:
    try:
        found = read_name(text)
    except ValueError as error:
        assert len(str(error)) < 700
    else:
        assert len({each.number for each in found}) == len(found)


def test_long_cells_take_no_long() -> None:
    for text in ("A" * 50_000, "(" * 50_000, "A42G:" * 10_000, "1" * 50_000, "p." * 20_000):
        with pytest.raises(ValueError):
            read_name(text)
