"""What cells say of labels and splits, and what of them is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protein_lm.batches.label_cells import LabelReader
from protein_lm.batches.labels import LabelTable, has_label, read_labels
from protein_lm.choices import LongPolicy, Task
from protein_lm.config import HeadConfig, LabelledDataConfig
from protein_lm.corpus.split import Split
from protein_lm.errors import InputError

TRAIN, VALID, TEST = Split.TRAIN, Split.VALID, Split.TEST


@pytest.mark.parametrize(
    ("task", "mark", "text", "labels"),
    [
        ("regression", None, " 1.5 ", [1.5]),
        ("regression", None, "", [None]),
        ("regression", None, "NaN", [None]),
        ("regression", "-999", "-999.0", [None]),
        ("regression", "NA", "NA", [None]),
        ("classification", None, "nan", [None]),
        ("classification", None, "  ", [None]),
        ("classification", None, "X", ["X"]),
        ("classification", "unknown", "unknown", [None]),
        ("residue-regression", None, "1 nan -2", [1.0, None, -2.0]),
        ("residue-regression", "-1", "1 -1.0 NaN", [1.0, None, None]),
        ("residue-regression", None, "", [None, None, None]),
        ("residue-regression", None, "nan", [None, None, None]),
        ("residue-classification", None, "HXx", ["H", None, None]),
        ("residue-classification", None, "nan", [None, None, None]),
        ("residue-classification", "-?", "X-?", ["X", None, None]),
        ("residue-classification", "X", "H-X", ["H", "-", None]),
        ("residue-classification", "", "HX-", ["H", "X", "-"]),
    ],
)
def test_cells(task, mark, text, labels) -> None:
    assert LabelReader(Task(task), mark).read(text, "MKT") == labels


@pytest.mark.parametrize(
    ("task", "text", "fault"),
    [
        (
            "regression",
            "NA",
            "label 'NA' is not a finite number; correct it, remove the row, set head.no_label to it if",
        ),
        ("regression", "1e999", "label '1e999' is not a finite number"),
        ("residue-regression", "1 2", "2 labels for 3 residues; give one for each: numbers, with blanks between them"),
        ("residue-classification", "HX", "2 labels for 3 residues; give one for each: letters"),
        (
            "residue-classification",
            "H-E",
            "'-' may be a class, or say that a residue has no label; set head.no_label to X for a class, or to 'X-'",
        ),
    ],
)
def test_cells_that_are_refused(task, text, fault) -> None:
    with pytest.raises(ValueError, match=fault):
        LabelReader(Task(task), None).read(text, "MKT")


def test_numbers_are_marks_too() -> None:
    assert HeadConfig.model_validate({"task": "regression", "no_label": -1}).no_label == "-1"
    with pytest.raises(ValueError, match="should be a valid string"):
        HeadConfig.model_validate({"task": "regression", "no_label": True})


def read(folder: Path, text: str, task: str = "regression", *, policy: str = "error", **head) -> LabelTable:
    (folder / "t.csv").write_text(text)
    config = HeadConfig.model_validate({"task": task, **head})
    data = LabelledDataConfig(long_sequences=LongPolicy(policy))
    return read_labels(folder / "t.csv", config, data, max_residues=5)


def statistics(table: LabelTable) -> tuple[float, float]:
    labels = table.training_labels()
    return labels.mean(), labels.std()


def test_flips_columns_are_the_split(tmp_path) -> None:
    """As FLIP's files have them: validation is True or empty, or True and False."""
    rows = ["MK,1,train,", "MKA,2,train,False", "MKC,3,train,True", "MKD,4,test,", "MKE,5,test,False"]
    table = read(tmp_path, "sequence,target,set,validation\n" + "\n".join(rows), column="target")
    assert table.splits.tolist() == [TRAIN, TRAIN, VALID, TEST, TEST]
    assert statistics(table) == (1.5, 0.5)
    frame = pd.DataFrame({"sequence": ["MK", "MKA", "MKC"], "label": [1, 2, 3], "set": "train", "validation": None})
    frame["validation"] = frame["validation"].astype("boolean")
    frame.loc[2, "validation"] = True
    frame.to_parquet(tmp_path / "t.parquet")
    found = read_labels(tmp_path / "t.parquet", HeadConfig(task=Task.REGRESSION), LabelledDataConfig(), max_residues=9)
    assert found.splits.tolist() == [TRAIN, TRAIN, VALID]


def test_a_column_split_goes_before_flips(tmp_path) -> None:
    table = read(tmp_path, "sequence,label,set,split,validation\nMK,1,A,train,x\nMKA,2,B,train,y\nMKC,3,C,test,z\n")
    assert table.splits.tolist() == [TRAIN, TRAIN, TEST]
    table = read(tmp_path, "sequence,label,validation\nMK,1,by eye\nMKA,2,\nMKC,3,true\nMKD,4,5\nMKE,5,\nMKF,6,\n")
    assert len(table.residues) == 6, "a column of another meaning"


@pytest.mark.parametrize(
    ("columns", "row", "fault"),
    [
        (
            "set",
            "valid",
            "row 2: set is 'valid'; FLIP's column of that name has train and test; name the splits in a col",
        ),
        ("set", "", "row 2: set is ''; FLIP's column of that name has train and test"),
        (
            "set,validation",
            "train,maybe",
            "row 2: validation is 'maybe'; FLIP's column of that name has True and False",
        ),
        ("set,validation", "test,True", "row 2: set is test and validation is True; a row has one split"),
        (
            "validation",
            "True",
            "row 2: a column validation without FLIP's column set; name the splits in a column split",
        ),
    ],
)
def test_what_flips_columns_cannot_hold(tmp_path, columns, row, fault) -> None:
    first = {"set": "train", "set,validation": "train,", "validation": ""}[columns]
    with pytest.raises(InputError, match=rf"t\.csv, {fault}"):
        read(tmp_path, f"sequence,label,{columns}\nMK,1,{first}\nMKA,2,{row}\n")


def test_sequences_without_a_label_are_left_out(tmp_path) -> None:
    text = "sequence,label,split\nMK,1,train\nMKA,nan,train\nMKC,2,train\nMKD,,valid\nMKE,4,valid\n"
    table = read(tmp_path, text)
    assert len(table.residues) == 3 and table.num_unlabelled == 2 and table.labels.tolist() == [1, 2, 4]
    assert statistics(table) == (1.5, 0.5)
    table = read(tmp_path, text.replace("nan", "a").replace(",1,", ",b,").replace(",4,", ",2,"), "classification")
    assert table.classes == ("2", "a", "b") and table.num_unlabelled == 1
    with pytest.raises(InputError, match=r"t\.csv: no sequence has a label in the column label"):
        read(tmp_path, "sequence,label\nMK,\nMKA,nan\n")
    with pytest.raises(InputError, match="1 labelled sequences are left to train on"):
        read(tmp_path, "sequence,label,split\nMK,1,train\nMKA,nan,train\nMKC,2,test\n")


def test_residues_without_a_label(tmp_path) -> None:
    text = "sequence,label,split\nMKA,HXE,train\nMKC,XXX,train\nMKD,EHX,train\nMKEAAC,XXXXXH,train\nMK,HX,valid\n"
    table = read(tmp_path, text, "residue-classification", policy="crop")
    assert table.classes == ("E", "H") and table.num_unlabelled == 2, "one has none in the window"
    assert has_label(table.labels).tolist() == [True, False, True, True, True, False, True, False]
    assert table.training_labels().tolist() == [1, 0, 0, 1]
    table = read(tmp_path, text.replace("X", "-"), "residue-classification", policy="crop", no_label="-")
    assert table.classes == ("E", "H")
    table = read(tmp_path, text, "residue-classification", policy="crop", no_label="")
    assert table.classes == ("E", "H", "X") and table.num_unlabelled == 0
    text = "sequence,label,split\nMKA,1 nan 3,train\nMKC,nan 5 nan,train\nMK,nan 1,valid\n"
    table = read(tmp_path, text, "residue-regression")
    assert statistics(table) == (3.0, np.std([1, 3, 5]))


def test_a_table_whose_sequences_were_all_dropped(tmp_path) -> None:
    with pytest.raises(InputError, match=r"t\.csv: all 2 sequences are over 5 residues, the model's window"):
        read(tmp_path, "sequence,label\nMKAAAA,1\nMKAAAC,2\n", policy="drop")
