"""Folders of unfinished work: whatever was done since the last save is undone, and damage is noticed."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protein_lm.files.resume import STATE, StateError, WorkFolder

NAMES = ("a.text", "b.text")
steps = st.lists(st.tuples(st.sampled_from(["append", "append", "remove", "keep", "save"]), st.sampled_from(NAMES)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != STATE}


@settings(max_examples=300)
@given(steps=steps)
def test_a_killed_process_is_resumed_from_its_last_save(steps) -> None:
    with TemporaryDirectory() as name:
        folder, left = Path(name, "work"), Path(name, "left")
        folder.mkdir()
        work, growing, whole, saved = WorkFolder(folder, {"seed": 1}), dict[str, bytes](), dict[str, bytes](), None
        removed: set[str] = set()
        for number, (step, file) in enumerate(steps):
            if step == "append" and file not in removed:
                growing[file] = growing.get(file, b"") + b"%d" % number
                work.append(file, b"%d" % number)
                assert work.flushed(file).read_bytes() == growing[file] and work.num_bytes(file) == len(growing[file])
            elif step == "remove" and file in growing:
                del growing[file]
                work.remove(file)
                removed.add(file)
            elif step == "keep":
                whole[f"{number}.whole"] = b"whole"
                (folder / f"{number}.whole").write_bytes(b"whole")
                work.keep(f"{number}.whole")
            elif step == "save":
                saved = number, growing | whole
                work.save({"number": number})
        shutil.copytree(folder, left)  # what a process that is killed now leaves
        work.close()
        if saved is None:
            assert not (left / STATE).exists()
            return
        resumed = WorkFolder(left, {"seed": 1})
        resumed.restore()
        assert resumed.state == {"number": saved[0]} and contents(left) == saved[1]
        for file in NAMES:
            resumed.append(file, b"more")
        resumed.close()
        assert contents(left) == saved[1] | {file: saved[1].get(file, b"") + b"more" for file in NAMES}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / STATE).write_bytes(b"{}"), "its saved state is damaged"),
        (lambda folder: (folder / "a.text").write_bytes(b"0x"), "its file a.text is damaged"),
        (lambda folder: (folder / "a.text").write_bytes(b"0"), "its file a.text is damaged"),
        (lambda folder: (folder / "a.text").unlink(), "its file a.text is missing"),
        (lambda folder: (folder / "b.whole").unlink(), "its file b.whole is missing"),
    ],
)
def test_damage_is_noticed(tmp_path, damage, message) -> None:
    work = WorkFolder(tmp_path)
    work.append("a.text", b"01")
    (tmp_path / "b.whole").touch()
    work.keep("b.whole")
    work.save({})
    work.close()
    damage(tmp_path)
    with pytest.raises(StateError, match=message):
        WorkFolder(tmp_path).restore()


def test_a_folder_takes_its_final_name_without_what_is_not_a_result(tmp_path) -> None:
    for without_whole, expected in ((False, ["b.whole", "result"]), (True, ["result"])):
        folder, output = tmp_path / "work", tmp_path / f"output{without_whole}"
        folder.mkdir()
        work = WorkFolder(folder)
        work.append("a.text", b"01")
        for name in ("b.whole", "result"):
            (folder / name).touch()
        work.keep("b.whole")
        work.save({})
        work.finish_as_folder(output, without_whole=without_whole)
        assert sorted(path.name for path in output.iterdir()) == expected and not folder.exists()
