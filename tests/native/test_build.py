"""How the kernels are built and found: by a compiler that is there, missing, or fails wherever it can."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protein_lm.cli import main
from protein_lm.errors import ConfigError, OutputError
from protein_lm.native import build, library, reader

ROOT = Path(__file__).parents[2]
has_compiler = any(map(shutil.which, build.COMPILERS))
needs_compiler = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
COMPILER = """#!/bin/sh
# Stands for a compiler: objects are empty, and every library is the small one that tells levels.
all="$*"
while [ $# -gt 0 ]; do [ "$1" = -o ] && target=$2; shift; done
name=${{target##*/}}
echo "$name" >> {folder}/calls
{fault}
case "$name" in
    *.o) : > "$target" ;;
    *) cp {folder}/small.so "$target" ;;
esac
"""
PROBE_ONLY = '[ "$name" = probe ] || '
WHILE_COMPILING = PROBE_ONLY + '{ echo "half" > "$target"; echo "no space: error" >&2; exit 1; }'
"""What a compiler does that tells the levels, and then fails."""


@pytest.fixture(scope="session")
def small_library(tmp_path_factory) -> Path:
    """The library that tells levels, built with the compiler of this machine."""
    library = tmp_path_factory.mktemp("small") / "small.so"
    command = [build.find_compiler(), "-shared", "-fPIC", str(build.PROBE), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def compiler(small_library, tmp_path, monkeypatch):
    """Make a compiler of a line of shell that says where it fails, for `$CXX`; the folder of kernels is `kernels`."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    shutil.copy(small_library, folder / "small.so")
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setenv("CXX", str(folder / "cxx"))

    def make(fault: str = "") -> str:
        (folder / "cxx").write_text(COMPILER.format(folder=folder, fault=fault))
        (folder / "cxx").chmod(0o755)
        return str(folder / "cxx")

    return make


@pytest.fixture
def look_anew():
    """Forget what is in use, before and after."""
    library.forget()
    yield
    library.forget()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_compiler
def test_only_levels_of_this_processor_unless_all_are_asked_for(compiler, capsys) -> None:
    compiler()
    own = build.levels_of_this_processor(build.find_compiler())
    assert own[-1] == "plain" and set(own) <= set(build.levels_of_this_kind())
    assert main(["kernels", "build"]) == 0
    assert files_of(build.folder()) == sorted(map(build.file_of, [*own, build.READER]))
    assert capsys.readouterr().out.splitlines()[0].startswith(f"building {', '.join([*own, build.READER])} with ")
    assert main(["kernels", "build", "--all"]) == 0
    assert files_of(build.folder()) == sorted(map(build.file_of, [*build.levels_of_this_kind(), build.READER]))


@needs_compiler
def test_the_processor_has_the_levels_that_torch_knows_of(compiler) -> None:
    import torch

    has = build.levels_of_this_processor(compiler())
    capability = torch.backends.cpu.get_cpu_capability() if "ATEN_CPU_CAPABILITY" not in os.environ else "DEFAULT"
    assert {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "plain") in has


@needs_compiler
def test_missing_ones_are_built_in_a_line_and_the_others_left_alone(compiler, tmp_path, capsys) -> None:
    compiler()
    assert main(["kernels", "build"]) == 0
    capsys.readouterr()
    assert main(["kernels", "build", "--missing"]) == 0
    assert capsys.readouterr().out.startswith("the compiled kernels are there: ")
    build.library_of("plain").unlink()
    calls = tmp_path / "compiler" / "calls"
    calls.unlink()
    assert main(["kernels", "build", "--missing"]) == 0
    assert capsys.readouterr().out.startswith("building plain with ")
    assert "plain" in calls.read_text().splitlines() and build.READER not in calls.read_text().splitlines()


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("echo 'cc1plus: error: no such flag' >&2; exit 1", "cc1plus: error: no such flag"),
        ("exit 3", "status 3 and no message"),
        ("kill -9 $$", "status -9 and no message"),
        (WHILE_COMPILING, "no space: error"),
        (
            '[ "$name" = plain.rotary.o ] && { echo half > "$target"; echo "fatal error: killed" >&2; exit 1; }',
            "killed",
        ),
        ('[ "$name" = plain ] && { echo half > "$target"; exit 1; }', "status 1"),
        ('[ "$name" = plain ] && { echo half > "$target"; exit 0; }', "a library that cannot be loaded"),
        ('[ "$name" = plain ] && { head -c 5000 {small} > "$target"; exit 0; }', "a library that cannot be loaded"),
        ('[ "$name" = plain ] && exit 0', "a library that cannot be loaded"),
        ("exit 0", "a library that cannot be loaded"),
    ],
)
def test_a_compiler_that_fails_half_way_leaves_nothing(compiler, fault, said, tmp_path, capsys) -> None:
    compiler(fault.replace("{small}", str(tmp_path / "compiler" / "small.so")))
    for before in ([], ["old"]):
        for name in before:
            build.library_of("plain").write_text(name)
        assert main(["kernels", "build"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "could not build the kernels: " in line and said in line and "everything works, more slowly" in line
        assert [path.read_text() for path in build.folder().rglob("*")] == before


@needs_compiler
def test_levels_that_cannot_be_built_are_left_out(compiler, capsys) -> None:
    compiler('case "$name" in avx2.*|reader) echo "avx2.cpp:1: error: no such processor" >&2; exit 1 ;; esac')
    built = build.build(["avx2", "plain", build.READER], compiler=build.find_compiler())
    assert [path.name for path in built.libraries] == ["kernels-plain.so"] == files_of(build.folder())
    assert built.left_out == dict.fromkeys(("avx2", build.READER), "avx2.cpp:1: error: no such processor")
    assert not build.build(["avx2"], compiler=build.find_compiler()).libraries


@needs_compiler
def test_the_reader_is_left_out_without_the_headers_of_arrow(compiler, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    built = build.build(["plain", build.READER], compiler=compiler())
    assert "pyarrow is not there" in built.left_out[build.READER]


def test_a_missing_compiler_is_said_in_a_line(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    for given in ("no-such-compiler", " ", "g++ '"):
        monkeypatch.setenv("CXX", given)
        assert main(["kernels", "build"]) == 2
        assert f"$CXX is {given}, which is no program here" in capsys.readouterr().err
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in ([], ["--missing"]):
        assert main(["kernels", "build", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no C++ compiler: looked for c++, g++, clang++; install one" in line
    (tmp_path / "g++").write_text("no program, but may be run")
    (tmp_path / "g++").chmod(0o755)
    with pytest.raises(ConfigError, match=r"g\+\+ could not build the kernels: error: Exec format error"):
        build.build(["plain"], compiler=build.find_compiler())


@needs_compiler
def test_without_a_compiler_what_is_built_stays(compiler, monkeypatch, capsys) -> None:
    compiler()
    assert main(["kernels", "build"]) == 0
    before = files_of(build.folder())
    compiler("exit 1")
    capsys.readouterr()
    assert main(["kernels", "build", "--missing"]) == 0
    assert capsys.readouterr().out.startswith("the compiled kernels stay as they are: ")
    assert files_of(build.folder()) == before


@needs_compiler
def test_a_folder_that_cannot_be_written_is_said_in_a_line(compiler, monkeypatch, tmp_path, capsys) -> None:
    compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path / "file"))
    for arguments in ([], ["--all"], ["--missing"]):
        assert main(["kernels", "build", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the kernels cannot be written to " in line and "; set PROTEIN_LM_KERNELS_FOLDER" in line
    with pytest.raises(OutputError, match="cannot be written"):
        build.install(tmp_path / "file")


def test_the_users_own_come_first_then_those_of_the_installation(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(build.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "INSTALLED", tmp_path / "built")
    own, installed = (
        folder / build.file_of("plain") for folder in (build.folder(), tmp_path / "built" / build.stamp())
    )
    assert build.library_of("plain") == own and not own.exists()
    for path in (installed, own):
        path.parent.mkdir(parents=True)
        path.write_text("")
        assert build.library_of("plain") == path
    assert build.library_of("avx2") == own.with_name("kernels-avx2.so")  # where it would be built
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path / "named"))
    assert build.folders() == [tmp_path / "named" / build.stamp()]


@pytest.mark.parametrize("what", ["FLAGS", "SOURCES", "READER_HEADER"])
def test_what_is_built_from_other_sources_is_not_found(monkeypatch, tmp_path, what) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(build.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(build, "INSTALLED", tmp_path / "built")
    for folder in build.folders():
        folder.mkdir(parents=True)
        (folder / build.file_of("plain")).write_text("")
    assert build.library_of("plain").exists()
    changed = tmp_path / "changed.cpp"
    changed.write_text("// edited")
    monkeypatch.setattr(
        build, what, {"FLAGS": [*build.FLAGS, "-g"], "SOURCES": [*build.SOURCES[1:], changed]}.get(what, changed)
    )
    assert not build.library_of("plain").exists()


def test_a_user_without_a_home_has_those_of_the_installation(monkeypatch, tmp_path, look_anew) -> None:
    for variable in (build.FOLDER_VARIABLE, "XDG_CACHE_HOME", library.VARIABLE):
        monkeypatch.delenv(variable, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    assert build.folders() == [tmp_path / build.stamp()]
    assert library.kernels() is None and not reader.reader().is_compiled
    with pytest.raises(ConfigError, match="no home directory to keep kernels in; set PROTEIN_LM_KERNELS_FOLDER"):
        build.build(["plain"], compiler="/bin/true")


@needs_compiler
def test_installing_builds_once_and_removes_other_versions(compiler, tmp_path) -> None:
    compiler()
    root, names = tmp_path / "built", [*build.levels_of_this_processor(build.find_compiler()), build.READER]
    (root / "0123456789ab").mkdir(parents=True)
    (root / "0123456789ab" / build.file_of("plain")).write_text("of other sources")
    assert len(build.install(root).libraries) == len(names)
    assert files_of(root) == sorted(f"{build.stamp()}/{build.file_of(name)}" for name in names)
    assert build.install(root) == build.Built([], {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", [*build.FLAGS, "-g"])
        assert len(build.install(root).libraries) == len(names)
        assert [path.name for path in root.iterdir()] == [build.stamp()]


@needs_compiler
@pytest.mark.parametrize("fault", ["", WHILE_COMPILING])
def test_setup_builds_or_goes_on_without(compiler, fault, tmp_path, monkeypatch) -> None:
    pytest.importorskip("setuptools")
    compiler(fault)
    monkeypatch.delenv(build.VARIABLE)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = "protein-lm is installed without compiled kernels: "
    assert (said in done.stderr) == bool(fault) and "Traceback" not in done.stderr
    built = files_of(tmp_path / "lib")
    folder = f"protein_lm/native/built/{build.stamp()}"
    assert all(path.startswith(folder) for path in built) and bool(built) == (not fault)
    assert (f"{folder}/{build.file_of('plain')}" in built) == (not fault)


@pytest.mark.parametrize("status", [0, 2])
def test_the_scripts_build_what_is_missing_and_go_on(tmp_path, monkeypatch, status) -> None:
    specification = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    assert specification is not None and specification.loader is not None
    environment = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(environment)
    (tmp_path / "protein-lm").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit {status}\n')
    (tmp_path / "protein-lm").chmod(0o755)
    monkeypatch.setattr(environment, "_installed", lambda *extras: tmp_path)
    for value in ("", build.OFF):
        monkeypatch.setenv(build.VARIABLE, value)
        assert environment.ready("dev") == tmp_path
    assert (tmp_path / "calls").read_text() == "kernels build --missing\n"


@needs_compiler
def test_only_what_is_built_and_possible_can_be_forced(kernels_folder, monkeypatch, tmp_path, look_anew) -> None:
    monkeypatch.setenv(library.VARIABLE, "avx1024")
    with pytest.raises(ConfigError, match=r"PROTEIN_LM_KERNELS is avx1024; choose .*plain, off"):
        library.kernels()
    monkeypatch.setenv("PROTEIN_LM_KERNELS_FOLDER", str(tmp_path))
    monkeypatch.setenv(library.VARIABLE, "plain")
    library.forget()
    with pytest.raises(ConfigError, match="not built: protein-lm kernels build"):
        library.kernels()


@needs_compiler
def test_what_is_in_use_is_described(kernels_folder, monkeypatch, tmp_path, look_anew) -> None:
    assert library.describe() == "attention: torch; $PROTEIN_LM_KERNELS is off" and library.advice() is None
    monkeypatch.delenv(library.VARIABLE)
    best, *others = library.available_levels()
    assert library.describe().startswith(f"attention: compiled kernels {best}") and library.advice() is None
    shutil.copy(build.library_of("plain"), tmp_path)
    (tmp_path / build.stamp()).mkdir()
    shutil.move(tmp_path / build.file_of("plain"), tmp_path / build.stamp())
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    library.forget()
    end = f"; this processor has {best}: protein-lm kernels build" if others else ""
    assert library.describe() == f"attention: compiled kernels plain{end}"
    build.library_of("plain").unlink()
    library.forget()
    assert library.kernels() is None
    assert "protein-lm kernels build makes linear attention two to three times as fast" in library.describe()


def test_damaged_libraries_are_said_in_a_line(monkeypatch, tmp_path, look_anew) -> None:
    monkeypatch.delenv(library.VARIABLE)
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    build.folder().mkdir()
    build.library_of("plain").write_bytes(b"no library")
    with pytest.raises(ConfigError, match=r"kernels-plain.so cannot be used .*; build them anew with protein-lm"):
        library.kernels()
