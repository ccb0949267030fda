"""Header lines: identifiers, and the fields of many headers at once compared with regular expressions for one."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.io.headers import sequence_id
from protein_lm.io.readers import read_blocks
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"

# A name may itself hold `=`, so each field is looked for by its key, in UniProt's order, up to the end of the line.
KNOWLEDGEBASE = re.compile(
    r"(?P<name>.*?)"
    r"(?:(?:^|\s)OS=.*?(?:\sOX=(?P<taxon>\d+))?(?:\sGN=.*?)?(?:\sPE=(?P<existence>\d))?(?:\sSV=\d+(?:\s\w+=\S*)*)?)?$"
)
CLUSTER = re.compile(
    r"(?P<name>.*?)(?:(?:^|\s)n=(?P<size>\d+)(?:\sTax=.*?)?(?:\sTaxID=(?P<taxon>\d+))?(?:\sRepID=\S+)?)?$"
)
OTHER = re.compile(r"(?P<name>.*)$")
WORDS = {r"(sp|tr)\|[^|]": KNOWLEDGEBASE, r"UniRef(50|90|100)_\S": CLUSTER, "": OTHER}


def expected(header: str) -> tuple[int, int, int, int]:
    """Taxon, cluster size, level of evidence and flags of one header."""
    word, _, rest = header.strip().partition(" ")
    pattern = next(pattern for begins, pattern in WORDS.items() if re.match(begins, word))
    match = pattern.match(rest.strip())
    assert match is not None
    said = match.groupdict()
    review = {"sp": REVIEWED, "tr": UNREVIEWED}[word[:2]] if pattern is KNOWLEDGEBASE else 0
    flags = review | (FRAGMENT if said["name"].endswith(("(Fragment)", "(Fragments)")) else 0)
    return int(said.get("taxon") or 0), int(said.get("size") or 0), int(said.get("existence") or 0), flags


def found(path: Path) -> list[tuple[int, int, int, int]]:
    with Source(path) as source:
        rows = []
        for block in read_blocks(source):
            said = block.annotations
            columns = said.taxon_ids, said.cluster_sizes, said.protein_existence, said.flags
            rows += list(zip(*(column.tolist() for column in columns), strict=True))
        return rows


def test_real_headers():
    lines = [line for line in FIXTURE.read_text().splitlines() if line.startswith(">")]
    assert found(FIXTURE) == [expected(line[1:]) for line in lines]


names = st.text(st.sampled_from("abN=(.) 9"), max_size=12).map(str.strip)
fragments = st.sampled_from(["", " (Fragment)", " (Fragments)", " (fragment)"])


@st.composite
def knowledgebase_headers(draw) -> str:
    word = draw(st.sampled_from(["sp|P12345|A_B", "tr|A0A0|C_D", "sp|P12345", "P12345", "sp||x"]))
    line = f"{word} {draw(names)}{draw(fragments)}"
    if draw(st.booleans()):
        line += f" OS={draw(names)}"
        line += f" OX={draw(st.integers(0, 2**31 - 1))}" if draw(st.booleans()) else ""
        line += f" GN={draw(names)}" if draw(st.booleans()) else ""
        line += f" PE={draw(st.integers(1, 5))}" if draw(st.booleans()) else ""
        line += " SV=1" if draw(st.booleans()) else ""
    return line


@st.composite
def cluster_headers(draw) -> str:
    word = draw(st.sampled_from(["UniRef50_P1", "UniRef90_A0A", "UniRef100_UPI1", "UniRef50_", "UniRef20_P1"]))
    line = f"{word} {draw(names)}{draw(fragments)}"
    if draw(st.booleans()):
        line += f" n={draw(st.integers(0, 2**31 - 1))}"
        line += f" Tax={draw(names)}" if draw(st.booleans()) else ""
        line += f" TaxID={draw(st.integers(0, 2**31 - 1))}" if draw(st.booleans()) else ""
        line += " RepID=A_B" if draw(st.booleans()) else ""
    return line


@given(headers=st.lists(knowledgebase_headers() | cluster_headers(), min_size=1, max_size=8))
def test_any_headers(headers, tmp_path_factory):
    path = tmp_path_factory.mktemp("headers") / "in.fasta"
    path.write_text("".join(f">{header}\nMK\n" for header in headers))
    assert found(path) == [expected(header) for header in headers]


@pytest.mark.parametrize(
    ("line", "identifier"),
    [
        ("seq1", "seq1"),
        ("seq1\tmade up", "seq1"),
        (" seq1 made up", "seq1"),
        ("sp|P62593", "P62593"),
        ("tr|A0A1-2|X_Y name", "A0A1-2"),
        ("gi|12345|ref|NP_1.1| old", "gi|12345|ref|NP_1.1|"),
        ("sp||X name", "sp||X"),
    ],
)
def test_identifier_of_other_lines(line, identifier):
    assert sequence_id(line) == identifier


@pytest.mark.parametrize("line", ["", " \t"])
def test_a_line_without_identifier_is_refused(line):
    with pytest.raises(InputError, match="a header has no identifier; write one after its '>'"):
        sequence_id(line)
