from pathlib import Path

import pytest

from protein_lm.errors import InputError
from protein_lm.io.headers import Database, Header, parse_header, sequence_id

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"
LINES = [line for line in FIXTURE.read_text().splitlines() if line.startswith(">")]


def test_swiss_prot():
    line = ">sp|P00974|BPT1_BOVIN Pancreatic trypsin inhibitor OS=Bos taurus OX=9913 GN=PTI PE=1 SV=2"
    assert parse_header(line) == Header(
        sequence_id="P00974",
        description="Pancreatic trypsin inhibitor",
        database=Database.SWISS_PROT,
        entry_name="BPT1_BOVIN",
        organism="Bos taurus",
        taxon_id=9913,
        gene="PTI",
        protein_existence=1,
        sequence_version=2,
    )


def test_uniref():
    line = "UniRef50_Q8WZ42 Titin n=2871 Tax=Vertebrata TaxID=7742 RepID=TITIN_HUMAN"
    assert parse_header(line) == Header(
        sequence_id="UniRef50_Q8WZ42",
        description="Titin",
        database=Database.UNIREF50,
        organism="Vertebrata",
        taxon_id=7742,
        cluster_size=2871,
        representative="TITIN_HUMAN",
    )


def test_uniref_without_taxon_id():
    header = parse_header("UniRef100_A5DI11 Elongation factor 2 n=1 Tax=Pichia guilliermondii RepID=EF2_PICGU")
    assert (header.organism, header.taxon_id, header.representative) == ("Pichia guilliermondii", None, "EF2_PICGU")


def test_equals_sign_in_names():
    header = parse_header(
        "tr|Q9S8M8|Q9S8M8_WHEAT FRIII-2-VIII=GAMMA-gliadin (Fragment) OS=Triticum aestivum OX=4565 PE=1 SV=1"
    )
    assert (header.description, header.is_fragment) == ("FRIII-2-VIII=GAMMA-gliadin (Fragment)", True)
    header = parse_header("tr|F5U222|F5U222_STRAP Ligase OS=Streptococcus SK52 = DSM 20563 GN=asnS PE=3 SV=1")
    assert (header.organism, header.gene) == ("Streptococcus SK52 = DSM 20563", "asnS")


@pytest.mark.parametrize("line", LINES)
def test_real_lines_are_read_to_the_last_letter(line):
    """Joined again, the fields give back the line."""
    header = parse_header(line)
    assert header.sequence_id == sequence_id(line[1:])
    prefix = {Database.SWISS_PROT: "sp|", Database.TREMBL: "tr|"}.get(header.database)
    word = f"{prefix}{header.sequence_id}|{header.entry_name}" if prefix else header.sequence_id
    uniref = header.cluster_size is not None
    keys = {
        "n": header.cluster_size,
        ("Tax" if uniref else "OS"): header.organism,
        ("TaxID" if uniref else "OX"): header.taxon_id,
        "GN": header.gene,
        "PE": header.protein_existence,
        "SV": header.sequence_version,
        "RepID": header.representative,
    }
    fields = [f"{key}={value}" for key, value in keys.items() if value is not None]
    assert " ".join(filter(None, [word, header.description, *fields])) == line[1:].strip()


@pytest.mark.parametrize(
    ("line", "expected"),
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
def test_identifier_of_other_lines(line, expected):
    assert sequence_id(line) == parse_header(line).sequence_id == parse_header(">" + line).sequence_id == expected


@pytest.mark.parametrize("line", ["", " \t"])
def test_a_line_without_identifier_is_refused(line):
    for read in (sequence_id, parse_header):
        with pytest.raises(InputError, match="a header has no identifier; write one after its '>'"):
            read(line)


def test_a_record_knows_what_its_header_says() -> None:
    from pathlib import Path

    from protein_lm.io.readers import read_records

    (record,) = read_records(Path(__file__).parents[2] / "data/P00974.fasta")
    assert (record.sequence_id, len(record), record.sequence[:5]) == ("P00974", 100, "MKMSR")
    assert (record.fields.entry_name, record.fields.organism, record.fields.taxon_id) == (
        "BPT1_BOVIN",
        "Bos taurus",
        9913,
    )
