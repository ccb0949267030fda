"""The compiled reader against Python and numpy: whatever it takes, it takes as they do, to the last number."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.corpus.filters import Filters
from protein_lm.corpus.workers import PartResult, Settings, process_part
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.files.text import Text
from protein_lm.io import compiled_reader as compiled
from protein_lm.io.readers import FASTA, FLAT_FILE, Part, TextFormat, parts
from protein_lm.native import build
from tests.io.test_headers import cluster_headers, knowledgebase_headers
from tests.native.test_build import needs_compiler

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "swissprot_sample.fasta.gz"
HEADERS = ROOT / "tests" / "fixtures" / "headers.fasta"
ENTRIES = ROOT / "tests" / "fixtures" / "entries.dat"
pytestmark = needs_compiler
policies = st.sampled_from(ResiduePolicy)


def in_two(text: bytes, form: TextFormat) -> Text:
    """A text, its last record by itself if there are several."""
    cut = text.rfind(form.mark, 0, -form.kept) + form.kept
    return Text(text[:cut], memoryview(text)[cut:]) if cut >= form.kept else Text(text)


def read_by(
    path: str, text: bytes, asked: Settings, form: TextFormat, families: Sequence[str]
) -> PartResult | str | None:
    """What becomes of a text, or the message, with the reader as it is (`""`) or `off`."""
    part = Part(Path("in"), in_two(text, form), form, line=1, num_lines=text.count(b"\n"), families=families)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.VARIABLE, path)
        try:
            return process_part(part, asked)
        except InputError as error:
            return str(error)


def is_taken(text: bytes, form: TextFormat, policy: ResiduePolicy) -> bool:
    """Whether the reader takes a text, and does not leave it to the parser."""
    assert form.compiled is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.VARIABLE, "")
        return compiled.read(in_two(text, form), form.compiled, text.count(b"\n"), policy) is not None


def assert_same(text: bytes, asked: Settings, form: TextFormat = FASTA, families: Sequence[str] = ()) -> None:
    ours, theirs = (read_by(path, text, asked, form, families) for path in ("", build.OFF))
    assert type(ours) is type(theirs)
    if not isinstance(ours, PartResult) or not isinstance(theirs, PartResult):
        assert ours == theirs
        return
    assert (ours.num_read, ours.num_dropped, ours.annotated) == (theirs.num_read, theirs.num_dropped, theirs.annotated)
    assert_equal_fields(ours.records, theirs.records)


def assert_equal_fields(ours: Any, theirs: Any) -> None:
    for field in fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(one, np.ndarray):
            assert_equal_arrays(one, other, field.name)
        elif is_dataclass(one):
            assert_equal_fields(one, other)
        else:
            assert one == other, field.name


def assert_equal_arrays(one: np.ndarray, other: np.ndarray, name: str) -> None:
    assert one.dtype == other.dtype and one.shape == other.shape, name
    assert (one == other).all(), name


def settings_of(policy: ResiduePolicy, on_error: OnError = OnError.STOP, **filters) -> Settings:
    return Settings(policy, on_error, Filters(**filters))


headers = (
    knowledgebase_headers()
    | cluster_headers()
    | st.text(st.characters(max_codepoint=126, exclude_characters="\n\r"), min_size=1).filter(
        lambda line: max(line) > " "
    )
    | st.sampled_from(
        [
            "sp|P1|A n OX=12345678901 PE=1",
            "tr|P1|A n OX=2147483647 OX=2147483648",
            "tr|P1 PE=256 PE=3x",
            "sp|P1|A name (Fragment) OS=a OS=b (Fragments)",
            "UniRef50_A name n=2 (Fragment) n=x n=3",
            " \tUniRef50_A\x0bn=1",
            "sp|A|B OS=",
            "sp|A|B=OX=9 OX=",
            "(Fragment)",
            "a(Fragments) \t ",
        ]
    )
)
bodies = st.text(st.sampled_from("ACDEFGHIKLMNPQRSTVWY"), min_size=1, max_size=400)
ambiguous = st.text(st.sampled_from("ACDEFGHIKLMNPQRSTVWYXBUZOJ"), min_size=1, max_size=40)


@st.composite
def texts(draw, residues=bodies | ambiguous) -> bytes:
    records = draw(
        st.lists(st.tuples(headers, residues, st.sampled_from([1, 7, 60, 80, 1000])), min_size=1, max_size=8)
    )
    lines = []
    for header, body, width in records:
        lines += [f">{header}", *(body[place : place + width] for place in range(0, len(body), width))]
        lines += [""] * draw(st.integers(0, 2))
    return "".join(f"{line}\n" for line in lines).encode()


@settings(max_examples=400)
@given(text=texts(), policy=policies, on_error=st.sampled_from(OnError), least=st.sampled_from([1, 20]))
def test_equals_numpy_on_ordinary_texts(reader, text, policy, on_error, least) -> None:
    assert_same(text, settings_of(policy, on_error, min_length=least))
    refused = policy is ResiduePolicy.ERROR and any(letter in text for letter in b"XBUZOJ")
    assert is_taken(text, FASTA, policy) or refused  # or else this test would compare numpy with itself


@settings(max_examples=400)
@given(
    text=texts(bodies | st.text(st.sampled_from("ACDacd*-.JX \t>1é"), max_size=70)),
    damages=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=2),
    policy=policies,
    on_error=st.sampled_from(OnError),
)
@example(b">\nM\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b">a\n", [], ResiduePolicy.KEEP, OnError.SKIP)
@example(b">a\nMK\n>b\n\n\n>c\nM*\n", [], ResiduePolicy.KEEP, OnError.SKIP)
@example(">a é\nM\n".encode(), [], ResiduePolicy.KEEP, OnError.STOP)
def test_equals_numpy_on_any_text(reader, text, damages, policy, on_error) -> None:
    for where, piece in damages:
        place = 1 + int(where * (len(text) - 2))
        text = text[:place] + piece + text[place + len(piece) :]
    assert_same(text.replace(b"\r", b"") + b"\n", settings_of(policy, on_error))


@pytest.mark.parametrize("length", [1, 3, 4, 8, 9, 16, 17, 127, 128, 129, 239, 240, 241, 1023, 1024, 1025, 35_213])
def test_equals_numpy_at_any_length(reader, length) -> None:
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    body = letters[np.random.default_rng(length).integers(0, 20, length)].tobytes()
    for width in (60, 79, length):
        lines = b"\n".join(body[place : place + width] for place in range(0, length, width))
        assert_same(b">a\n" + lines + b"\n>b\n" + lines[:-1] + b"L\n", settings_of(ResiduePolicy.KEEP))


@pytest.mark.parametrize("path", [SAMPLE, HEADERS], ids=["sample", "headers"])
@pytest.mark.parametrize("policy", ResiduePolicy)
def test_equals_numpy_on_real_files(reader, path, policy) -> None:
    with Source(path) as source:
        text = b"".join(source.blocks())
    assert_same(text, settings_of(policy))
    assert_same(text, settings_of(policy, min_length=100, max_length=300, drop_fragments=True))


names = st.text(st.sampled_from("AZaz09 (){}|:;=."), max_size=12)
family_names = st.sampled_from(["PF00001", "PF00002", "PF00003"])
entry_lines = st.one_of(
    st.builds("DE   {}{}".format, st.sampled_from(["RecName: Full=", "SubName: Full=", "", "Flags: "]), names),
    st.builds(
        "DE   {}{}{}".format,
        st.sampled_from(["Flags: ", "Flags: Precursor; ", "A ", ""]),
        st.sampled_from(["Fragment", "Fragments", "(Fragment)", "(FRAGMENTS)", "(fragmenT", "Fragments)", "FFragment"]),
        st.sampled_from([";", ".", " ", "", "s;", "s", "x;"]),
    ),
    st.builds("OS   {}".format, names),
    st.builds(
        "OX   NCBI_TaxID={}".format, st.sampled_from(["", "x", "9606;", "2147483647", "2147483648", "99999999999"])
    ),
    st.builds("PE   {}".format, st.sampled_from(["1: Evidence;", "5:", "6: no", "0:", "4", "", "11:"])),
    st.builds("DR   Pfam; {}; name; 1.".format, family_names),
    st.builds("AC   {}".format, st.sampled_from(["P1; P2;", " ;", "", ";", "P3", " P 4 ;"])),
    st.sampled_from(
        ["XX", "", "DR", "CC   -!- SIMILARITY: >(Fragment)", "SQ  no", "/", "///", "AC", "DE", "D", "PE   1"]
    ),
)


def laid_out(residues: str, group: int, width: int) -> list[str]:
    groups = [residues[place : place + group] for place in range(0, len(residues), group)]
    return [f"     {' '.join(groups[place : place + width])}" for place in range(0, len(groups), width)]


tens = st.just(10)


@st.composite
def flat_files(draw, residues=bodies | ambiguous, group=tens) -> bytes:
    text = []
    for number in range(draw(st.integers(1, 6))):
        status = draw(st.sampled_from(["Reviewed;", "Unreviewed;", "STANDARD;", "PRELIMINARY;", "IPI;", ""]))
        text += ["\n" * draw(st.integers(0, 2)) + f"ID   N{number}_X  {status}   9 AA.", f"AC   P{number};"]
        text += draw(st.lists(entry_lines, max_size=8))
        text += ["SQ   SEQUENCE   9 AA;", *laid_out(draw(residues), draw(group), 6), "//"]
    return "".join(f"{line}\n" for line in text).encode() + draw(st.sampled_from([b"", b"\n"]))


@settings(max_examples=400)
@given(
    text=flat_files(),
    policy=policies,
    on_error=st.sampled_from(OnError),
    least=st.sampled_from([1, 20]),
    families=st.lists(family_names, unique=True),
)
def test_equals_python_on_ordinary_flat_files(reader, text, policy, on_error, least, families) -> None:
    assert_same(text, settings_of(policy, on_error, min_length=least), FLAT_FILE, families)
    assert is_taken(text, FLAT_FILE, ResiduePolicy.KEEP)


@settings(max_examples=400)
@given(
    text=flat_files(bodies | st.text(st.sampled_from("ACDacd*-.JX 1é"), max_size=140), st.integers(1, 70)),
    damages=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.binary(max_size=3)
            | st.sampled_from(
                [b"\n//\n", b"//\n", b"\nAC   ;", b"\nSQ   x", b" \t", b"\nDE   \xff", b"\nID   ", b"\n" * 66]
            ),
        ),
        max_size=2,
    ),
    policy=policies,
    on_error=st.sampled_from(OnError),
)
@example(b"ID   A\nAC   A;\nSQ   \n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\nSQ   \nMK\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\nSQ   \n     MK\n// \n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\nSQ   \n     MK\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\n//\nSQ   \n     MK\n//\n", [], ResiduePolicy.KEEP, OnError.SKIP)
@example(b"ID   A\nAC   A;\nID   B\nSQ   \n     MK\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\nSQ   \n     MK\nID   A\n     MK\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   A;\nSQ   \n     MK//\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\tReviewed; x\nAC   A;\nSQ   \n     MK\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
@example(b"ID   A\nAC   \t;\nSQ   \n     MK\n//\n", [], ResiduePolicy.KEEP, OnError.STOP)
def test_equals_python_on_any_flat_file(reader, text, damages, policy, on_error) -> None:
    for where, piece in damages:
        place = 1 + int(where * (len(text) - 2))
        text = text[:place] + piece + text[place + len(piece) :]
    text = text.replace(b"\r", b"")
    assert_same(text if text.endswith(b"\n") else text + b"\n", settings_of(policy, on_error), FLAT_FILE)


@pytest.mark.parametrize("form", [FASTA, FLAT_FILE], ids=["fasta", "flat file"])
@pytest.mark.parametrize("text", [b"", b"\n", b"\n\n\n", b"\n" * 70])
def test_texts_without_a_record(reader, form, text) -> None:
    assert_same(text, settings_of(ResiduePolicy.KEEP), form)
    assert not is_taken(text, form, ResiduePolicy.KEEP)
    assert read_by("", text, settings_of(ResiduePolicy.KEEP), form, []) is None


PIECES = [
    *(
        b">a\n",
        b">",
        b"#59\t1\n",
        b"#",
        b"\n",
        b"\r",
        b" ",
        b"MK\n",
        b"MKV",
        b"mk-*\n",
        b"ID   A\n",
        b"AC   P1;\n",
        b"SQ   9\n",
    ),
    *(
        b"     MK\n",
        b"//\n",
        b"//",
        b"\x00",
        b"\x1a",
        b"\xef\xbb\xbf",
        "\x85".encode(),
        "\u2028".encode(),
        b'"',
        b"\xff",
    ),
    *(b">b c\nMKLV\n", b"ID   B  Reviewed;\nAC   B;\nSQ   9\n     MKLV\n//\n"),
]


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=12),
    block_bytes=st.sampled_from([1, 5, 2**21]),
    on_error=st.sampled_from(OnError),
)
@example([b"#59\t1\n", b">a\n", b"MK\n"], 2**21, OnError.STOP)
@example([b"\n", b"\n"], 2**21, OnError.STOP)
@example([b">a\n", b"MK\n", b"\n", b"\n"], 1, OnError.STOP)
@example([b"ID   B  Reviewed;\nAC   B;\nSQ   9\n     MKLV\n//\n", b"\n", b" "], 1, OnError.STOP)
def test_equals_python_on_any_file(reader, tmp_path_factory, pieces, block_bytes, on_error) -> None:
    path = tmp_path_factory.mktemp("any") / "in"
    path.write_bytes(b"".join(pieces))
    found = {}
    for way in ("", build.OFF):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(build.VARIABLE, way)
            try:
                with Source(path, block_bytes=block_bytes) as source:
                    made = [process_part(part, settings_of(ResiduePolicy.KEEP, on_error)) for part in parts(source)]
                found[way] = [one for one in made if one is not None]
            except InputError as error:
                assert "\n" not in str(error)
                found[way] = str(error)
    ours, theirs = found[""], found[build.OFF]
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
        return
    for one, other in zip(ours, theirs, strict=True):
        assert (one.num_read, one.num_dropped, one.annotated) == (other.num_read, other.num_dropped, other.annotated)
        assert_equal_fields(one.records, other.records)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 31, 32, 33, 59, 60, 61, 64, 65, 128, 35_213])
def test_equals_python_at_any_length_and_layout(reader, length) -> None:
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    body = letters[np.random.default_rng(length).integers(0, 20, length)].tobytes().decode()
    for group, width in ((10, 6), (10, 7), (7, 8), (1, 60), (64, 1), (65, 1), (max(length, 9), 1)):
        lines = "\n".join(laid_out(body, group, width))
        text = f"ID   A\nAC   A;\nSQ   9\n{lines}\n//\nID   B\nAC   B;\nSQ   9\n{lines[:-1]}L\n//\n".encode()
        assert_same(text, settings_of(ResiduePolicy.KEEP), FLAT_FILE)
        assert_same(text.replace(b"L\n", b"L  \n"), settings_of(ResiduePolicy.KEEP), FLAT_FILE)
        assert is_taken(text, FLAT_FILE, ResiduePolicy.KEEP) == (min(length, group * width) <= 64)


@pytest.mark.parametrize("policy", ResiduePolicy)
def test_equals_python_on_real_entries(reader, policy) -> None:
    text, families = ENTRIES.read_bytes(), ["PF00891", "PF12942"]
    assert_same(text, settings_of(policy), FLAT_FILE, families)
    assert_same(text, settings_of(policy, min_length=200, drop_fragments=True), FLAT_FILE, families)
    assert is_taken(text, FLAT_FILE, policy)
