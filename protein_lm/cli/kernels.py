"""Verbs about the compiled kernels and the compiled reader."""

from typing import Annotated

import typer

from protein_lm.cli.app import app
from protein_lm.errors import ConfigError, OutputError

kernels = typer.Typer(
    help="Compiled kernels: linear attention on CPUs, two to three times as fast, and reading files, up to six times.",
    no_args_is_help=True,
)


@kernels.command(epilog="Example: protein-lm kernels build")
def build(
    every_level: Annotated[bool, typer.Option("--all", help="Also the levels that this processor lacks.")] = False,
    only_missing: Annotated[bool, typer.Option("--missing", help="Leave alone what is built already.")] = False,
) -> None:
    """Build them with the C++ compiler of this machine ($CXX, or c++, g++, clang++), for the levels of its processor."""
    from protein_lm.native import build as building

    try:
        compiler = building.find_compiler()
        levels = building.levels_of_this_kind() if every_level else building.levels_of_this_processor(compiler)
        names = [*levels, building.READER]
        if only_missing:
            names = [name for name in names if not building.library_of(name).exists()]
        if not names:
            print(f"the compiled kernels are there: {', '.join(levels)}")
            return
        print(f"building {', '.join(names)} with {compiler}; this takes half a minute or less", flush=True)
        built = building.build(names, compiler=compiler)
    except (ConfigError, OutputError) as error:
        if not only_missing or not building.library_of("plain").exists():
            raise
        print(f"the compiled kernels stay as they are: {error}")
        return
    for name, reason in built.left_out.items():
        print(f"left out {name}: {reason}")
    if only_missing:
        return
    for path in built.libraries:
        print(path)

    from protein_lm.native import library

    library.forget()
    print(library.describe())


app.add_typer(kernels, name="kernels")
