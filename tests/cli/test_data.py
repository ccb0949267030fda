"""The verbs `data prepare` and `data inspect` as a person meets them."""

import gzip
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from protein_lm import cli
from protein_lm.cli import main
from protein_lm.cli.app import app

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"
COMMAND = [sys.executable, "-m", "protein_lm", "data"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def refuse(capsys, tmp_path, monkeypatch):
    """Run a command that must fail; its one line on standard error."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: str) -> str:
        before = names(tmp_path)
        assert main(["data", *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("protein-lm: error: ") and shown.err.count("\n") == 1
        assert names(tmp_path) == before
        return shown.err.removeprefix("protein-lm: error: ").strip()

    return refuse


def test_prepare_and_inspect(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", str(FIXTURE), "-o", "store", "--residues", "to-x", "--seed", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("store: ") and shown.err == ""
    assert main(["data", "inspect", "store"]) == 0
    report = capsys.readouterr().out
    for expected in ("residue policy to-x", "splits by hash of sequence_id, seed 3", "held_out", "longest: ", "64–127"):
        assert expected in report
    assert main(["data", "inspect", "store", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["residue_policy"] == "to-x"
    assert main(["data", "inspect", "store", "--plot", "lengths.svg"]) == 0
    assert capsys.readouterr().out == report and (tmp_path / "lengths.svg").read_text().startswith("<?xml")
    for name, fault in (
        ("lengths.svg", "exists already; remove it"),
        ("lengths.jpg", "unknown figure format; end it in"),
    ):
        assert main(["data", "inspect", "store", "--plot", name]) == 2
        assert capsys.readouterr().err.startswith(f"protein-lm: error: {name}{':' if 'jpg' in name else ''} {fault}")


def test_families_are_held_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["data", "prepare", str(FIXTURE.parent / "entries.dat"), "-o", "told"]
    assert main([*command, "--hold-out-families", "PF12942,PF00069", "--hold-out-families", "performer"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "told: 3 sequences, 992 residues; 0 dropped\n"
    assert shown.err.startswith("21 of 22 families have no sequence held out: PF00069, PF03272, ")
    assert shown.err.endswith("PF17988, ...\n") and shown.err.count("\n") == 1
    (tmp_path / "families.txt").write_text("PF00014\n")
    (tmp_path / "table.tsv").write_text("sequence_id\tfamily_id\nP00974\tPF00014\n")
    command = ["data", "prepare", str(FIXTURE), "-o", "store", "--hold-out-families", "families.txt"]
    assert main([*command, "--family-table", "table.tsv"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["data", "inspect", "store"]) == 0
    assert "held out of families: PF00014 1" in capsys.readouterr().out
    assert main(["data", "export", "store", "-o", "held_out.fasta", "--split", "held_out"]) == 0
    assert (tmp_path / "held_out.fasta").read_text().startswith(">P00974\n")


CONTENTS = {
    "empty.fasta": b"",
    "picture.fasta": b"\x89PNG\r\n\x1a\n",
    "cut.fasta.gz": gzip.compress(FIXTURE.read_bytes())[:-30],
    "hollow.fasta": b">a\n>b\nMK\n",
    "digits.fasta": b">a\nMK\n1 MK\n",
    "nameless.fasta": b">\nMK\n",
    "latin.fasta": b">a caf\xe9\nMK\n",
    "twice.fasta": b">a\nMK\n>a\nMV\n",
    "good.fasta": b">a\nMKX\n",
    "table.csv": b"sequence_id,split\nzzz,test\n",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.fasta"], "nothing.fasta does not exist; check the name"),
        (["folder"], "folder has no sequence file: none ends in .csv, "),
        (["good.fasta", "good.fasta"], "good.fasta is named twice; name it once"),
        (["empty.fasta"], "empty.fasta is empty: it holds no sequence; give FASTA, a UniProtKB flat file, "),
        (["picture.fasta"], "picture.fasta looks like a PNG image; give FASTA, a UniProtKB flat file, "),
        (["cut.fasta.gz"], "cut.fasta.gz is a truncated gzip file, or has a few other bytes after its data; "),
        (["hollow.fasta"], "hollow.fasta, line 1, sequence a: no residues; remove the record or add its sequence"),
        (
            ["digits.fasta"],
            "digits.fasta, line 3, sequence a: '1' at position 3 is not a residue letter; ",
        ),
        (["nameless.fasta"], "nameless.fasta, line 1: the header has no identifier; write one after its '>'"),
        (["latin.fasta"], "latin.fasta, line 1, sequence a: byte 0xE9 in its header is not UTF-8; save the file as "),
        (["twice.fasta"], "twice.fasta, line 3: sequence a has other residues than at twice.fasta, line 1; rename or "),
        (["good.fasta", "--residues", "error"], "good.fasta, line 2, sequence a: ambiguous residue 'X' at position "),
        (["good.fasta", "--residues", "drop"], "no sequence is left of 1 in good.fasta: ambiguous residue 1; relax "),
        (
            ["good.fasta", "--min-length", "9"],
            "no sequence is left of 1 in good.fasta: too short 1; relax the filters ",
        ),
        (
            ["good.fasta", "--min-length", "0"],
            "minimum length 0 is below 1, and no sequence is empty; choose 1 or more",
        ),
        (
            ["good.fasta", "--test-fraction", "1"],
            "validation fraction 0.05 and test fraction 1 leave nothing to train ",
        ),
        (["good.fasta", "--split-table", "table.csv"], "table.csv names 1 of 1 sequences that no source has: zzz; "),
        (
            ["good.fasta", "--hold-out-families", "PF69"],
            "'PF69' is no Pfam accession (PF and five digits, as PF00069), no ",
        ),
        (
            ["good.fasta", "--hold-out-families", "performer"],
            "good.fasta does not tell the families of its sequences, as UniProtKB's .dat and XML do; give a family table",
        ),
        (
            ["good.fasta", "--hold-out-families", "performer", "--family-table", "table.csv"],
            "table.csv: its first line must name sequence_id and family_id, or there must be two columns without names: ",
        ),
        (
            ["good.fasta", "--family-table", "table.csv"],
            "table.csv tells families, but none is to be held out; name some",
        ),
        (["good.fasta", "--seed", "x"], "Invalid value for '--seed'"),
        ([], "Missing argument 'SOURCE...'; see protein-lm data prepare --help"),
        (["good.fasta", "--colour"], "No such option: --colour"),
    ],
)
def test_bad_input_is_one_clear_line(refuse, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    assert refuse("prepare", *arguments, "-o", "store").startswith(message)


def test_an_existing_output_is_refused_and_kept(refuse, tmp_path):
    (tmp_path / "store").mkdir()
    assert refuse("prepare", str(FIXTURE), "-o", "store") == "store exists already; remove it or name another output"


def test_what_is_no_store(refuse):
    assert refuse("inspect", "store").startswith("store does not exist; make it with: protein-lm data prepare FASTA")


@pytest.fixture
def large(tmp_path) -> Path:
    path = tmp_path / "large.fasta"
    path.write_text(
        "".join(
            f">s{number}\n{'MKVLAAGIT' * 20}{'ACDEFGHIKL'[number % 10] * (number // 10)}\n" for number in range(9_000)
        )
    )
    return path


def test_the_installed_command_reports_and_leaves_nothing(tmp_path):
    result = subprocess.run([*COMMAND, "prepare", "nope", "-o", "s"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "protein-lm: error: nope does not exist; check the name\n"
    assert names(tmp_path) == []


def test_a_disk_that_takes_no_more(tmp_path, large):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [*COMMAND, "prepare", large.name, "-o", "store"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr.startswith("protein-lm: error: cannot write store: the file would be larger than the allowed")
    assert result.stderr.count("\n") == 1
    assert names(tmp_path) == ["large.fasta"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_under_the_final_name_when_it_is_stopped(tmp_path, large, number):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for copy in range(50):
        (inputs / f"{copy}.fasta").hardlink_to(large)
    process = subprocess.Popen(
        [*COMMAND, "prepare", "inputs", "-o", "store"],
        cwd=tmp_path,
        stderr=-1,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # which commands in a shell's background ignore
    )
    while len(names(tmp_path)) == 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, shown = process.communicate()
    assert not (tmp_path / "store").exists()
    if number == signal.SIGINT:
        assert (process.returncode, shown) == (130, b"protein-lm: error: interrupted\n")
        assert names(tmp_path) == ["inputs", "large.fasta"]


def test_help_has_an_example_and_loads_nothing_heavy():
    code = "import sys; from protein_lm.cli import main; main(['data', 'prepare', '--help']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Example: protein-lm data prepare" in shown
    assert not {"torch", "pandas", "matplotlib", "pyarrow", "scipy"} & set(shown.split())


def test_only_the_file_of_the_verb_is_imported_and_help_knows_all_verbs():
    code = "import sys; from protein_lm.cli import main; main(['data', '--help']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "protein_lm.cli.data" in shown and "protein_lm.cli.train" not in shown.split()
    main(["--help"])
    found: dict[str, list[str]] = {}
    for name, command in get_command(app).commands.items():
        verb = next(iter(command.commands.values())) if hasattr(command, "commands") else command
        found.setdefault(verb.callback.__module__.removeprefix("protein_lm.cli."), []).append(name)
    assert found == cli._VERBS


def test_prepare_loads_nothing_heavy(tmp_path):
    code = (
        f"import sys; from protein_lm.cli import main; main(['data', 'prepare', {str(FIXTURE)!r}, '-o', 'store'])\n"
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"torch", "pandas", "matplotlib", "scipy"} & set(result.stdout.split())
