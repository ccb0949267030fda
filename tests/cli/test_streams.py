"""Standard output that refuses what is written, that nobody reads, or that lacks letters."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protein_lm import cli
from protein_lm.checkpoint.directory import save_model
from protein_lm.cli import main
from tests.conftest import fresh_model, write_fasta


class Refusing(io.StringIO):
    """A stream that takes some texts, and then no more."""

    def __init__(self, error: OSError, taken: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, taken

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(fresh_model(objective="causal"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def arguments(model, tmp_path) -> dict[str, list[str]]:
    fasta = write_fasta(tmp_path / "p.fasta", {"Zoë\U0001f600": "MKV", "P2": "MKVLA"})
    return {
        "help": ["--help"],
        "version": ["--version"],
        "info": ["info", str(model)],
        "score": ["score", str(fasta), "-m", str(model)],
        "generate": ["generate", "-m", str(model), "--max-length", "5"],
    }


VERBS = ["help", "version", "info", "score", "generate"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_output_is_one_line(arguments, verb, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(full()))
    assert main(arguments[verb]) == 2
    assert capsys.readouterr().err == (
        "protein-lm: error: cannot write standard output: the disk is full; free some space or write elsewhere\n"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_pipe_ends_the_command_silently(arguments, verb, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(arguments[verb]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_that_is_closed_is_one_line(arguments, verb, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(arguments[verb]) == 2
    assert capsys.readouterr().err == "protein-lm: error: cannot write standard output: it is closed\n"


def test_an_output_that_is_full_later(arguments, monkeypatch, capsys) -> None:
    stream = Refusing(full(), taken=2)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*arguments["generate"], "-n", "9"]) == 2
    assert "the disk is full" in capsys.readouterr().err and stream.getvalue()


@pytest.mark.parametrize("stream", [None, Refusing(full()), Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe"))])
def test_an_error_that_cannot_be_told_has_its_status_all_the_same(monkeypatch, stream) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["nonsense"]) == 2


@pytest.mark.parametrize(
    ("encoding", "errors"),
    [("ascii", "strict"), ("ascii", "surrogateescape"), ("latin-1", "strict"), ("utf-8", "strict")],
)
def test_letters_that_an_output_lacks_are_escaped(arguments, encoding, errors, monkeypatch) -> None:
    for verb in VERBS:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments[verb]) == 0
        written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        if verb == "score":
            expected = "Zoë\U0001f600".encode(encoding, "backslashreplace").decode(encoding)
            assert written.splitlines()[1].startswith(f"{expected},3,")


def test_whatever_the_system_refuses_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    def refuse(_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(tmp_path / "x"))

    monkeypatch.setattr(cli, "app", lambda *_, **__: refuse(None))
    assert main(["info"]) == 2
    assert capsys.readouterr().err == f"protein-lm: error: {tmp_path / 'x'}: operation not permitted\n"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), None])
def test_too_little_memory_is_one_line(error, monkeypatch, capsys) -> None:
    def run(*_: object, **__: object) -> None:
        if error is not None:
            raise error
        torch.empty(2**58)

    monkeypatch.setattr(cli, "app", run)
    assert main(["info"]) == 2
    assert capsys.readouterr().err.startswith("protein-lm: error: there is not enough memory; give fewer tokens")


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_process_with_a_full_output() -> None:
    """Neither a traceback nor a complaint of the interpreter about what is left in the buffer."""
    with Path("/dev/full").open("w") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "protein_lm", "--version"],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "the disk is full" in ended.stderr


def test_a_process_whose_output_nobody_reads() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "protein_lm", "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("content", ["", ">P1\nMK?V\n", "nothing", ">P1\n" + "M" * 63 + "\n"])
@pytest.mark.parametrize(
    "verb", [["score"], ["score", "--num-draws", "2"], ["generate", "--prefix"], ["infill"], ["predict"]]
)
def test_nothing_is_printed_before_an_error_in_the_input(model, tmp_path, verb, content, monkeypatch, capsys) -> None:
    (tmp_path / "in.fasta").write_text(content)
    source = "-" if verb[0] == "score" else str(tmp_path / "in.fasta")
    with (tmp_path / "in.fasta").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main([*verb, source, "-m", str(model)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1


def test_a_table_without_rows_has_its_heading(model, tmp_path, capsys) -> None:
    fasta = write_fasta(tmp_path / "long.fasta", {"P1": "M" * 63})
    assert main(["score", str(fasta), "-m", str(model), "--long", "drop"]) == 0
    assert capsys.readouterr().out == "sequence_id,length,log_likelihood,mean_log_likelihood,perplexity\n"
