"""The structures that Python and C++ share, field by field, as the compiler sees them."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pyarrow
import pytest

from protein_lm.native import build
from protein_lm.native.structures import Shared

FOLDER = Path(build.__file__).parent
C_TYPES = {ctypes.c_int32: "int32_t", ctypes.c_int64: "int64_t", ctypes.c_float: "float"}
has_compiler = any(map(shutil.which, build.COMPILERS))


def assertions(structure: type[Shared]) -> list[str]:
    """Size of a structure; type and offset of each field, in its order."""
    twin = structure.twin
    lines = [f"static_assert(sizeof({twin}) == {ctypes.sizeof(structure)});"]
    for name, kind, *_ in structure._fields_:
        field, offset = f"decltype({twin}::{name})", getattr(structure, name).offset
        if kind is ctypes.c_void_p:
            lines.append(f"static_assert(std::is_pointer_v<{field}>);")
        else:
            c_type = kind.twin if issubclass(kind, Shared) else C_TYPES[kind]
            lines.append(f"static_assert(std::is_same_v<{field}, {c_type}>);")
        lines.append(f'static_assert(offsetof({twin}, {name}) == {offset}, "{name}");')
    return lines


def compile_assertions(structure: type[Shared], lines: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "assertions.cpp"
    includes = ["<cstddef>", "<type_traits>", f'"{structure.source}"']
    source.write_text("\n".join([*(f"#include {name}" for name in includes), *lines]))
    command = [build.find_compiler(), "-std=c++17", "-fsyntax-only", f"-I{FOLDER}", f"-I{pyarrow.get_include()}"]
    return subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
@pytest.mark.parametrize("structure", Shared.__subclasses__(), ids=lambda structure: structure.__name__)
def test_every_field_is_where_the_compiler_has_it(structure, tmp_path) -> None:
    done = compile_assertions(structure, assertions(structure), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
def test_a_field_elsewhere_is_noticed(tmp_path) -> None:
    from protein_lm.native.structures import ReadCall

    lines = assertions(ReadCall)
    lines[-1] = lines[-1].replace(f"== {ReadCall.num_bouz.offset}", f"== {ReadCall.num_j.offset}")
    assert "num_bouz" in compile_assertions(ReadCall, lines, tmp_path).stderr
