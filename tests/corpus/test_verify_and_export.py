import numpy as np
import pandas as pd
import pytest

from protein_lm.corpus.array_file import checksum_of_values
from protein_lm.corpus.export import export
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import ARRAYS, TokenStore
from protein_lm.corpus.verify import verify
from protein_lm.errors import ConfigError, InputError, OutputError, StoreError

HEADERS = (
    *(">sp|P1|A_B Name (Fragment) OS=x OX=9606 PE=1 SV=1", ">tr|P2|C_D Name OS=x OX=5 PE=4 SV=1"),
    *(">UniRef50_P3 Name n=7 Tax=x TaxID=7 RepID=E_F", ">plain"),
)


@pytest.fixture
def store(tmp_path) -> TokenStore:
    letters = ["MKV" * 50, "ACDXU", "M" * 60, "MA"]
    text = "".join(f"{header}\n{body}\n" for header, body in zip(HEADERS, letters, strict=True))
    (tmp_path / "in.fasta").write_text(text)
    (tmp_path / "splits.csv").write_text("sequence_id,split\nP1,train\nP2,test\nUniRef50_P3,train\nplain,valid\n")
    prepare([tmp_path / "in.fasta"], tmp_path / "store", split_table=tmp_path / "splits.csv")
    return TokenStore.open(tmp_path / "store")


def contents(store: TokenStore) -> list[tuple[str, bytes]]:
    return [(store.sequence_id(i), store.residues(i).tobytes()) for i in range(store.num_sequences)]


@pytest.mark.parametrize("name", ["out.fasta", "out.fa.gz", "out.parquet"])
def test_what_is_exported_prepares_to_the_same(store, tmp_path, name):
    assert export(store, tmp_path / name) == 4
    prepare([tmp_path / name], tmp_path / "again")
    assert contents(TokenStore.open(tmp_path / "again")) == contents(store)


def test_lines_and_splits(store, tmp_path):
    assert export(store, tmp_path / "out.fasta", splits=[Split.TRAIN]) == 2
    lines = (tmp_path / "out.fasta").read_text().splitlines()
    assert [line for line in lines if line.startswith(">")] == [">P1", ">UniRef50_P3"]
    assert [len(line) for line in lines if not line.startswith(">")] == [60, 60, 30, 60]
    with pytest.raises(InputError, match="has no sequence in held_out"):
        export(store, tmp_path / "none.fasta", splits=[Split.HELD_OUT])
    with pytest.raises(OutputError, match="exists already"):
        export(store, tmp_path / "out.fasta")
    with pytest.raises(ConfigError, match=r"out\.parquet\.gz: unknown suffix; choose \.fasta"):
        export(store, tmp_path / "out.parquet.gz")


def test_tables_say_what_is_known(store, tmp_path):
    export(store, tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet").set_index("sequence_id")
    assert table["split"].tolist() == ["train", "test", "train", "valid"]
    assert table["taxon_id"].fillna(0).tolist() == [9606, 5, 7, 0]
    assert table["cluster_size"].fillna(0).tolist() == [0, 0, 7, 0]
    assert table["protein_existence"].fillna(0).tolist() == [1, 4, 0, 0]
    assert table["is_fragment"].tolist() == [True, False, False, False]
    assert table["is_reviewed"].tolist() == [True, False, None, None]


def test_a_flipped_bit_is_found_anywhere(store):
    assert verify(store) == sum((store.path / name).stat().st_size for name in ARRAYS)
    for name in ARRAYS:
        path = store.path / name
        whole = path.read_bytes()
        for place in (128, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(StoreError, match=rf"store is damaged: {name} has checksum"):
                verify(store)
        for place in (0, 7, 20, 126):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(
                StoreError, match=rf"store is damaged: {name} has another header than it was given; copy"
            ):
                verify(store)
        path.write_bytes(whole)
    verify(store)


def test_values_that_cannot_be(store):
    path = store.path / "splits.npy"
    np.save(path, np.array([0, 9, 0, 0], dtype=np.uint8))
    store.manifest["files"]["splits.npy"]["xxh3_128"] = checksum_of_values(path)
    damaged = TokenStore(store.path, store.manifest)
    with pytest.raises(StoreError, match=r"splits\.npy has an impossible value at 1"):
        verify(damaged)
