import gzip

import numpy as np
import pytest

from protein_lm.corpus.split import Split, SplitRule, SplitTable
from protein_lm.errors import ConfigError, InputError
from protein_lm.io.hashing import hash_identifiers

MASK = 2**64 - 1
MANY = [b"A%07d" % number for number in range(50_000)]


def mix_textbook(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@pytest.mark.parametrize("identifier", ["P62593", "12345678", "a_rather_long_identifier|é", "x" * 1000, ""])
def test_hash_is_the_textbook_one_whatever_stands_next_to_it(identifier):
    encoded = identifier.encode()
    expected = mix_textbook(len(encoded))
    for start in range(0, len(encoded), 8):
        expected = mix_textbook(expected ^ int.from_bytes(encoded[start : start + 8], "little"))
    assert hash_identifiers([encoded]).tolist() == [expected]
    assert hash_identifiers([b"other", encoded, b"z" * 50]).tolist()[1] == expected


def test_split_never_changes():
    """Golden: a release that moved sequences between train and test would spoil every comparison."""
    identifiers = [b"P%05d" % number for number in range(40)]
    splits = SplitRule(seed=7, valid_fraction=0.2, test_fraction=0.2).assign(hash_identifiers(identifiers))
    assert "".join(map(str, splits)) == "0210020110120002000100020000000202201202"


def test_fractions_and_seeds():
    hashes = hash_identifiers(MANY)
    assert np.unique(hashes).size == len(MANY)
    first = SplitRule(seed=0, valid_fraction=0.1, test_fraction=0.02).assign(hashes)
    fractions = np.bincount(first, minlength=4) / len(MANY)
    assert fractions == pytest.approx([0.88, 0.1, 0.02, 0], abs=0.005)
    other = SplitRule(seed=1, valid_fraction=0.1, test_fraction=0.02).assign(hashes)
    both = ((first == Split.VALID) & (other == Split.VALID)).mean()
    assert both == pytest.approx(0.01, abs=0.003)  # independent of each other


def test_split_depends_on_the_identifier_alone():
    rule, order = SplitRule(seed=3), np.random.default_rng(0).permutation(len(MANY))
    splits = rule.assign(hash_identifiers(MANY))
    assert (rule.assign(hash_identifiers([MANY[i] for i in order])) == splits[order]).all()
    assert (rule.assign(hash_identifiers(MANY[:10])) == splits[:10]).all()


@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0)])
def test_impossible_fractions(valid, test):
    with pytest.raises(ConfigError, match="leave nothing to train on; both must be at least 0 and their sum below 1"):
        SplitRule(valid_fraction=valid, test_fraction=test)


def test_impossible_seed():
    with pytest.raises(ConfigError, match="seed -1 is out of range"):
        SplitRule(seed=-1)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_table_goes_before_the_rule(tmp_path, delimiter, compress):
    rows = ["family,split,sequence_id", "1,held_out,a", "1,test,b", "", "2,,c"]
    path = tmp_path / "splits"
    path.write_bytes(compress("\r\n".join(rows).replace(",", delimiter).encode()))
    table, splits = SplitTable(path), np.full(4, Split.VALID, dtype=np.uint8)
    table.assign(hash_identifiers([b"b", b"a", b"c", b"d"]), splits)
    assert splits.tolist() == [Split.TEST, Split.HELD_OUT, Split.VALID, Split.VALID]
    table.check_all_seen()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            "sequence_id,fold\na,1\n",
            "has no column split; it has sequence_id, fold; its first line must name sequence_id and split",
        ),
        ("ids,fold\n", "has no column sequence_id and no column split"),
        ("sequence_id,split\n", "has no rows; add some, or leave out the split table"),
        ("sequence_id,split\na,dev\n", "line 2, sequence a: unknown split 'dev'; choose train, valid, test, held_out"),
        ("sequence_id,split\na,test\nb,\na,test\n", "line 4: sequence a is on line 2 too; remove one of them"),
        ("split,sequence_id\ntest\n", "line 2: 1 of 2 columns; complete the row"),
        (b"sequence_id,split\n\xff,test\n", "line 2: not UTF-8; save the file as UTF-8"),
    ],
)
def test_faulty_tables(tmp_path, content, fault):
    path = tmp_path / "splits.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"splits.csv.*{fault}"):
        SplitTable(path)


def test_identifiers_that_no_source_has_are_listed(tmp_path):
    path = tmp_path / "splits.tsv"
    path.write_text("sequence_id\tsplit\n" + "".join(f"s{number:02}\ttest\n" for number in range(13)))
    table = SplitTable(path)
    table.assign(hash_identifiers([b"s00", b"other"]), np.zeros(2, dtype=np.uint8))
    with pytest.raises(InputError, match=r"names 12 of 13 sequences that no source has: s01, .*, s10, \.\.\.; correct"):
        table.check_all_seen()
