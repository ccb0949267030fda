"""The fields of many headers at once, beside `parse_header`, which reads one."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from protein_lm.files.sources import Source
from protein_lm.io.headers import Database, Header, parse_header
from protein_lm.io.readers import read_blocks
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"
REVIEW = {Database.SWISS_PROT: REVIEWED, Database.TREMBL: UNREVIEWED}


def expected(header: Header) -> tuple[int, int, int, int]:
    flags = REVIEW.get(header.database, 0) | (FRAGMENT if header.is_fragment else 0)
    return header.taxon_id or 0, header.cluster_size or 0, header.protein_existence or 0, flags


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
    assert found(FIXTURE) == [expected(parse_header(line)) for line in lines]


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
    assert found(path) == [expected(parse_header(header)) for header in headers]
