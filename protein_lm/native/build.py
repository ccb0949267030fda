"""Building the compiled code: one library of kernels per level of processor, out of the same sources, and the reader.

Libraries lie in the user's folder, or in that of the installation. The folder is named after their sources and flags, so that
no other version is taken for this one. Only `protein-lm kernels build`, scripts/demo, scripts/test and setup.py build them.
This module imports no torch, which is absent while pip builds.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from protein_lm.errors import ConfigError, OutputError

PROBE = Path(__file__).with_name("levels.cpp")
"""A source that tells, as a library of its own, which levels this processor has."""
SOURCES = [
    Path(__file__).with_name(f"{name}.cpp")
    for name in ("linear_attention", "exact_attention", "decoding", "block_attention", "linear_layer", "rotary")
] + [PROBE]
"""Sources of the kernels; those that take the compiler longest come first."""
HEADERS = [Path(__file__).with_name(name) for name in ("vectors.h", "products.h")]
READER_SOURCES = [Path(__file__).with_name(f"{name}.cpp") for name in ("fasta", "flat_file", "columns")]
READER_HEADER = Path(__file__).with_name("reading.h")
LEVELS = {
    "amx-bf16": ["-march=sapphirerapids"],
    "avx512-bf16": ["-march=x86-64-v4", "-mavx512bf16"],
    "avx512": ["-march=x86-64-v4"],
    "avx2": ["-march=x86-64-v3"],
    "plain": [],
}
"""Name -> flags, the best level first. `plain` is the compiler's default, with vectors of 128 bits."""
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno"]
COMPILERS = ["c++", "g++", "clang++"]
FOLDER_VARIABLE = "PROTEIN_LM_KERNELS_FOLDER"
VARIABLE = "PROTEIN_LM_KERNELS"
"""The variable that names the level to use, or `OFF`, which turns off the reader too."""
OFF = "off"
READER = "reader"
INSTALLED = Path(__file__).with_name("built")
"""The folder in which `pip install` puts libraries."""
_TRIAL = """
import ctypes, os, sys
try:
    library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)
except OSError as error:
    sys.exit(f"error: it made a library that cannot be loaded: {error}")
print(*(name for name in sys.argv[2:] if getattr(library, name)()))
"""
"""A script that loads a library without torch's own libraries, and prints which of its functions return not 0."""


def stamp() -> str:
    """Name the sources, the flags and the kind of machine that libraries are built from, in twelve letters."""
    sources = [*SOURCES, *HEADERS, *READER_SOURCES, READER_HEADER]
    settings = repr((LEVELS, FLAGS, platform.system(), platform.machine()))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources) + settings.encode()).hexdigest()[:12]


def folder() -> Path:
    """Return the folder of the user's libraries of this version, in `$PROTEIN_LM_KERNELS_FOLDER` or the user's cache.

    Raises:
        ConfigError: the user has no home directory, and no folder is named.
    """
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given) / stamp()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ConfigError(f"this user has no home directory to keep kernels in; set {FOLDER_VARIABLE}") from None
    return cache / "protein_lm" / "kernels" / stamp()


def folders() -> list[Path]:
    """List the folders to search: `$PROTEIN_LM_KERNELS_FOLDER` alone, or the user's and then that of the installation."""
    installed = INSTALLED / stamp()
    try:
        own = folder()
    except ConfigError:
        return [installed]
    return [own] if os.environ.get(FOLDER_VARIABLE) else [own, installed]


def library_of(name: str) -> Path:
    """Return the file of a level, or of the reader, in the first folder that has it; if none has, it does not exist."""
    files = [each / file_of(name) for each in folders()]
    return next((file for file in files if file.exists()), files[0])


def file_of(name: str) -> str:
    """Name the file of a level, or of the reader."""
    return f"{READER}.so" if name == READER else f"kernels-{name}.so"


def probe_of(level: str) -> str:
    """Name the function of levels.cpp that tells whether this processor has a level; `plain` has none."""
    return f"protein_lm_supports_{level.replace('-', '_')}"


def levels_of_this_kind() -> list[str]:
    """List the levels that can be built for this kind of processor, the best first."""
    return list(LEVELS) if platform.machine().lower() in {"x86_64", "amd64"} else ["plain"]


def find_compiler() -> str:
    """Find a C++ compiler: `$CXX`, or the first of `COMPILERS` that is installed.

    Raises:
        ConfigError: there is none.
    """
    given = os.environ.get("CXX")
    for name in [given] if given else COMPILERS:
        if _is_program(name):
            return name
    if given:
        raise ConfigError(f"$CXX is {given}, which is no program here; correct or unset it")
    raise ConfigError(
        f"no C++ compiler: looked for {', '.join(COMPILERS)}; install one (for example g++), or set CXX to its path. Without "
        "the kernels everything works, more slowly"
    )


def levels_of_this_processor(compiler: str, target: Path | None = None) -> list[str]:
    """List the levels that this processor has, the best first.

    Args:
        compiler: builds the probe.
        target: a folder to work in; by default that of the user's libraries.

    Raises:
        ConfigError: the compiler does not work.
        OutputError: the folder cannot be written.
    """
    levels = levels_of_this_kind()
    functions = {level: probe_of(level) for level in levels if level != "plain"}
    with _partial(target or folder()) as partial:
        library = partial / "probe"
        made = _run([*shlex.split(compiler), "-shared", *FLAGS, str(PROBE), "-o", str(library)])
        tried = _try(library, functions.values()) if made.returncode == 0 else made
    if fault := _fault(tried):
        raise _no_kernels(compiler, fault)
    has = tried.stdout.split()
    return [level for level in levels if level == "plain" or functions[level] in has]


class Built(NamedTuple):
    """Results of `build`."""

    libraries: list[Path]
    """Libraries in the order of their names."""
    left_out: dict[str, str]
    """Levels (or the reader) that the compiler cannot build, and its message."""


def build(names: Sequence[str], *, compiler: str, target: Path | None = None) -> Built:
    """Build libraries, and replace those that exist. A library appears when it is whole and was loaded once.

    Args:
        names: levels, of `levels_of_this_kind()`, and `READER`.
        compiler: its command, which may have arguments.
        target: the folder; by default that of the user's libraries.

    Raises:
        ConfigError: the compiler cannot build `plain`, with the first line of its message.
        OutputError: the folder cannot be written.
    """
    target = target or folder()
    with _partial(target) as partial:
        faults = _compile(compiler, names, partial)
        if fault := faults.get("plain"):
            raise _no_kernels(compiler, fault)
        built = [name for name in names if name not in faults]
        for name in built:  # only when all of them are there
            (partial / name).replace(target / file_of(name))
    return Built([target / file_of(name) for name in built], faults)


def install(root: Path) -> Built:
    """Build missing libraries for this processor into a folder of the package, and remove other versions from it.

    Raises:
        ConfigError: no compiler, or one that does not work.
        OutputError: the folder cannot be written.
    """
    target, compiler = root / stamp(), find_compiler()
    names = [*levels_of_this_processor(compiler, target), READER]
    names = [name for name in names if not (target / file_of(name)).exists()]
    built = build(names, compiler=compiler, target=target) if names else Built([], {})
    for other in set(root.iterdir()) - {target}:
        shutil.rmtree(other, ignore_errors=True)
    return built


def _is_program(command: str) -> bool:
    try:
        first = shlex.split(command)[:1]
    except ValueError:  # a quote that does not end
        return False
    return any(map(shutil.which, first))


def _no_kernels(compiler: str, fault: str) -> ConfigError:
    return ConfigError(
        f"{compiler} could not build the kernels: {fault}; try another one by setting CXX. Without the kernels everything "
        "works, more slowly"
    )


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Make a folder, and in it a temporary one for unfinished files."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as partial:
            yield Path(partial)
    except OSError as error:
        raise OutputError(
            f"the kernels cannot be written to {target} ({error.strerror}); set {FOLDER_VARIABLE}"
        ) from None


def _compile(compiler: str, names: Collection[str], partial: Path) -> dict[str, str]:
    """Build libraries in a folder, under their names, on all processors; return the compiler's message for failed ones.

    Threads are those of torch: its OpenMP is in the process when a library is loaded, so none is linked.
    """
    command, faults = shlex.split(compiler), {}
    sources = {name: READER_SOURCES if name == READER else SOURCES for name in names}
    flags = {name: ["-fopenmp", *LEVELS[name]] for name in names if name != READER}
    if READER in sources:
        if arrow := importlib.util.find_spec("pyarrow"):  # it brings the header of xxHash
            flags[READER] = [f"-I{Path(str(arrow.origin)).with_name('include')}"]
        else:
            faults[READER] = "pyarrow is not there, whose headers it needs"

    def compile_one(work: tuple[str, Path]) -> None:
        name, source = work
        arguments = [*FLAGS, *flags.get(name, ()), "-c", str(source), "-o", str(partial / f"{name}.{source.stem}.o")]
        if name not in faults and (fault := _fault(_run([*command, *arguments]))):
            faults[name] = fault

    work = [(name, source) for name in names for source in sources[name]]
    work.sort(key=lambda each: [*SOURCES, *READER_SOURCES].index(each[1]))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        list(pool.map(compile_one, work))
    for name in names:
        objects = [partial / f"{name}.{source.stem}.o" for source in sources[name]]
        if name not in faults and (fault := _link(command, objects, partial / name)):
            faults[name] = fault
    return faults


def _link(command: list[str], objects: Sequence[Path], library: Path) -> str | None:
    """Make a library and load it; return the message if that fails. Functions of OpenMP are resolved when called."""
    own = {"Darwin": ["-undefined", "dynamic_lookup"], "Linux": ["-Wl,-z,lazy"]}.get(platform.system(), [])
    if fault := _fault(_run([*command, "-shared", *own, *map(str, objects), "-o", str(library)])):
        return fault
    if platform.system() == "Darwin":  # there all functions are resolved at once, and OpenMP is not here
        return None if library.exists() else "it made no library"
    return _fault(_try(library))


def _try(library: Path, functions: Collection[str] = ()) -> subprocess.CompletedProcess:
    """Load a library in a process of its own, since a damaged one may kill it; print which functions return not 0."""
    done = _run([sys.executable, "-I", "-S", "-c", _TRIAL, str(library), *functions])
    if done.returncode < 0:
        done.stderr = f"it made a library that cannot be loaded (signal {-done.returncode})"
    return done


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:  # for example a script without the name of its interpreter
        return subprocess.CompletedProcess(command, 127, "", f"error: {error.strerror}")


def _fault(done: subprocess.CompletedProcess) -> str | None:
    """Return the message of a failed program, in a line."""
    if not done.returncode:
        return None
    lines = done.stderr.splitlines() or [f"it stopped with status {done.returncode} and no message"]
    return next((line for line in lines if "error" in line), lines[0]).strip()
