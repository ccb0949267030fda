"""Building the compiled kernels: one library per level of processor, out of the same sources; and the reader of files.

They lie in a folder of the user's, named after what they are built from, so that another version of the source or of the
flags is not taken for this one. Nothing is built unless it is asked for.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protein_lm.errors import ConfigError, OutputError

SOURCES = [
    Path(__file__).with_name(f"{name}.cpp") for name in ("linear_attention", "exact_attention", "rotary", "decoding")
]
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
"""Name -> flags, the best level first. `plain` is the compiler's own idea of the least processor; vectors are of 128 bits."""
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno"]
COMPILERS = ["c++", "g++", "clang++"]
FOLDER_VARIABLE = "PROTEIN_LM_KERNELS_FOLDER"
VARIABLE = "PROTEIN_LM_KERNELS"
"""Names the level to use; or `OFF`, which turns off the reader too."""
OFF = "off"
READER = "reader"


def folder() -> Path:
    """Where the libraries of this version lie: in `$PROTEIN_LM_KERNELS_FOLDER`, or the user's cache.

    Raises:
        ConfigError: the user has no home directory, and no folder is named.
    """
    content = b"".join(path.read_bytes() for path in [*SOURCES, *HEADERS, *READER_SOURCES, READER_HEADER])
    digest = hashlib.sha256(content + repr((LEVELS, FLAGS)).encode()).hexdigest()[:12]
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given) / digest
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ConfigError(f"this user has no home directory to keep kernels in; set {FOLDER_VARIABLE}") from None
    return cache / "protein_lm" / "kernels" / digest


def library_of(level: str) -> Path:
    """The file of a level, built or not."""
    return folder() / f"kernels-{level}.so"


def reader_library() -> Path:
    """The file of the reader, built or not."""
    return folder() / f"{READER}.so"


def levels_of_this_kind() -> list[str]:
    """Levels that can be built for this kind of processor, the best first."""
    return list(LEVELS) if platform.machine().lower() in {"x86_64", "amd64"} else ["plain"]


def find_compiler() -> str:
    """A C++ compiler: `$CXX`, or the first of `COMPILERS` that is there.

    Raises:
        ConfigError: there is none.
    """
    given = os.environ.get("CXX")
    for name in [given] if given else COMPILERS:
        if shutil.which(shlex.split(name)[0]):
            return name
    if given:
        raise ConfigError(f"$CXX is {given}, which is no program here; correct or unset it")
    raise ConfigError(
        f"no C++ compiler: looked for {', '.join(COMPILERS)}; install one (for example g++), or set CXX to its path. Without "
        "the kernels everything works, more slowly"
    )


class Built(NamedTuple):
    """What `build` made."""

    libraries: list[Path]
    """The best level first, the reader last."""
    left_out: dict[str, str]
    """Levels that are too new for the compiler, and what it says; of the reader too."""


def build(*, compiler: str | None = None) -> Built:
    """Build the libraries of all levels for this kind of processor; those that are there already are built anew.

    Raises:
        ConfigError: no compiler, or one that cannot build the least level, with the first line of what it says.
        OutputError: the folder cannot be written.
    """
    compiler = compiler or find_compiler()
    target = folder()
    left_out: dict[str, str] = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as partial:
            for level in levels_of_this_kind():
                if fault := _compile(compiler, SOURCES, ["-fopenmp", *LEVELS[level]], Path(partial) / level):
                    left_out[level] = fault
            if "plain" in left_out:
                raise ConfigError(
                    f"{compiler} could not build the kernels: {left_out['plain']}; try another one by setting CXX"
                )
            if fault := _compile(compiler, READER_SOURCES, [f"-I{_includes()}"], Path(partial) / READER):
                left_out[READER] = fault
            targets = {level: library_of(level) for level in levels_of_this_kind()} | {READER: reader_library()}
            built = {name: path for name, path in targets.items() if name not in left_out}
            for name, path in built.items():  # only when all of them are there
                (Path(partial) / name).replace(path)
    except OSError as error:
        raise OutputError(
            f"the kernels cannot be written to {target} ({error.strerror}); set {FOLDER_VARIABLE}"
        ) from None
    return Built(list(built.values()), left_out)


def _includes() -> str:
    """Arrow's headers, which have the one of xxHash among them."""
    import pyarrow

    return pyarrow.get_include()


def _compile(compiler: str, sources: Sequence[Path], flags: list[str], library: Path) -> str | None:
    """One library, or what the compiler says. Threads are torch's own: its OpenMP is in the process when a library is loaded,
    none is linked.
    """
    command = shlex.split(compiler)
    later = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
    objects = {source: library.with_suffix(f".{source.stem}.o") for source in sources}
    steps = [[*FLAGS, *flags, "-c", str(source), "-o", str(target)] for source, target in objects.items()]
    steps.append(["-shared", *later, *map(str, objects.values()), "-o", str(library)])
    for arguments in steps:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.splitlines() or ["no message"]
            return next((line for line in lines if "error" in line), lines[0]).strip()
    return None
