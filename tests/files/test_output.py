import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protein_lm.errors import OutputError
from protein_lm.files import output
from protein_lm.files.output import claimed, new_directory, new_file, recover


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_an_existing_output_is_refused(tmp_path, make):
    target = tmp_path / "out.csv"
    target.write_text("precious")
    with pytest.raises(OutputError, match=r"out\.csv exists already; remove it or name another output"), make(target):
        pass
    assert target.read_text() == "precious"
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_nothing_is_left_after_an_error(tmp_path, make):
    with pytest.raises(ZeroDivisionError), make(tmp_path / "out.csv"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_a_full_disk_is_one_clear_line(tmp_path, make):
    with pytest.raises(OutputError, match=r"out\.csv: the disk is full; free some space"), make(tmp_path / "out.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_file_appears_whole_with_the_usual_permissions(tmp_path):
    with new_file(tmp_path / "deep" / "out.csv") as partial:
        partial.write_text("all")
        assert partial.suffix == ".csv"
        assert not (tmp_path / "deep" / "out.csv").exists()
    assert (tmp_path / "deep" / "out.csv").read_text() == "all"
    (tmp_path / "usual").touch()
    assert (tmp_path / "deep" / "out.csv").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_directory_appears_whole_and_can_be_replaced(tmp_path):
    for text in ("one", "two"):
        with new_directory(tmp_path / "out", replace=True) as partial:
            (partial / "file").write_text(text)
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert names(tmp_path) == ["out"]


def test_a_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of this path is a file"), new_file(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_an_output_that_another_command_makes_is_refused(tmp_path, make):
    target = tmp_path / "out.csv"
    with claimed(target):
        before = names(tmp_path)
        with pytest.raises(OutputError, match=r"out\.csv: another command is at work there; wait for it"), make(target):
            pass
        assert names(tmp_path) == before
    assert names(tmp_path) == []
    with make(target):
        pass
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("make", [new_file, new_directory])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, make, has_links, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(output.os, "link", refuse)
    with pytest.raises(OutputError, match=r"out\.csv exists already"), make(tmp_path / "out.csv"):
        (tmp_path / "out.csv").mkdir()
        (tmp_path / "out.csv" / "precious").touch()
    assert names(tmp_path) == ["out.csv"] and names(tmp_path / "out.csv") == ["precious"]
    with pytest.raises(OutputError, match=r"second\.csv exists already"), make(tmp_path / "second.csv"):
        (tmp_path / "second.csv").write_text("precious")
    assert (tmp_path / "second.csv").read_text() == "precious"
    with make(tmp_path / "third.csv"):
        pass
    assert names(tmp_path) == ["out.csv", "second.csv", "third.csv"]


@pytest.mark.parametrize("step", ["_open_lock", "_lock_if_possible", "_has_name"])
def test_an_interruption_right_after_each_step_leaves_no_lock(tmp_path, step, monkeypatch):
    once, do = iter([True]), getattr(output, step)

    def interrupted(*arguments):
        found = do(*arguments)
        if next(once, False):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(output, step, interrupted)
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "out"):
        pass
    assert names(tmp_path) == []
    with claimed(tmp_path / "out"):
        assert names(tmp_path) == [".out.lock"]


def test_one_folder_under_two_names_is_claimed_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with claimed(tmp_path / "run"), pytest.raises(OutputError, match="at work"), claimed(tmp_path / "link"):
        pass


def test_a_folder_without_room_for_a_lock_next_to_it_is_locked_itself(tmp_path):
    folder = tmp_path / ("x" * 252)  # the lock's name would be too long
    folder.mkdir()
    with claimed(folder), pytest.raises(OutputError, match="at work"), claimed(folder):
        pass
    with claimed(folder):
        assert names(tmp_path) == [folder.name]


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output.fcntl, "flock", refuse)
    with new_directory(tmp_path / "out") as first:
        recover(tmp_path / "out")
        assert first.is_dir()  # whether its process lives, nobody knows
    assert names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    script = "\n".join(
        (
            "import os, sys, signal; from pathlib import Path; from protein_lm.files.output import new_directory",
            "with new_directory(Path(sys.argv[1])) as partial:",
            "    (partial / 'file').touch(); os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False).returncode == -signal.SIGKILL
    )
    lock, left = names(tmp_path)
    assert lock == ".out.lock" and left.startswith(".out.partial-")
    with new_directory(tmp_path / "out") as first:
        assert left not in names(tmp_path)
        with new_directory(tmp_path / "out", replace=True) as second:
            assert first.is_dir() and second != first
        assert names(tmp_path) == sorted([lock, first.name, "out"])
        shutil.rmtree(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == []


def test_a_folder_is_put_back_if_its_replacement_was_killed_halfway(tmp_path):
    """The process dies before each of its renames in turn: the folder is there, old or new, once anybody looks."""
    script = "\n".join(
        (
            "import os, sys, signal; from pathlib import Path; from protein_lm.files.output import new_directory",
            "renames = 0",
            "def hook(event, arguments):",
            "    global renames",
            "    renames += event == 'os.rename'",
            "    if event == 'os.rename' and renames == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)",
            "with new_directory(Path(sys.argv[1]), replace=True) as partial:",
            "    (partial / 'file').write_text('new'); sys.addaudithook(hook)",
        )
    )
    for number, text in ((1, "old"), (2, "old"), (3, "new")):
        out = tmp_path / str(number) / "out"
        out.mkdir(parents=True)
        (out / "file").write_text("old")
        ended = subprocess.run([sys.executable, "-c", script, str(out), str(number)], check=False).returncode
        assert ended == (-signal.SIGKILL if number < 3 else 0)
        assert out.exists() is (number != 2)
        recover(out)
        assert (out / "file").read_text() == text
        assert names(out.parent) == ["out"]
