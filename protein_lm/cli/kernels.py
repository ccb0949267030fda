"""Verbs about the compiled kernels and the compiled reader."""

import typer

from protein_lm.cli.app import app

kernels = typer.Typer(
    help="Compiled kernels: linear attention on CPUs, two to three times as fast, and reading files, up to six times.",
    no_args_is_help=True,
)


@kernels.command(epilog="Example: protein-lm kernels build")
def build() -> None:
    """Build them with the C++ compiler of this machine ($CXX, or c++, g++, clang++), for every level of its processor."""
    from protein_lm.native import build as building
    from protein_lm.native import library

    compiler = building.find_compiler()
    print(f"building with {compiler}; this takes about a minute")
    built = building.build(compiler=compiler)
    for path in built.libraries:
        print(path)
    for level, reason in built.left_out.items():
        print(f"left out {level}: {reason}")
    library.forget()
    print(library.describe())


app.add_typer(kernels, name="kernels")
