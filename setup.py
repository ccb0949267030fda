"""Builds the compiled kernels while pip installs, where there is a C++ compiler; pyproject.toml declares everything else.

An installation without them works: it is slower, and `protein-lm kernels build` builds them later.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))


class BuildKernels(build_ext):
    """Leaves to `protein_lm.native.build` what setuptools would do with a compiler of its own choice."""

    def run(self) -> None:
        """Build into the package: that of the build folder, or of an editable installation."""
        from protein_lm.errors import ProteinLMError
        from protein_lm.native import build

        package = Path(__file__).parent if self.inplace else Path(self.build_lib)
        if os.environ.get(build.VARIABLE) == build.OFF:
            return
        try:
            build.install(package / "protein_lm" / "native" / build.INSTALLED.name)
        except ProteinLMError as error:
            print(f"protein-lm is installed without compiled kernels: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        """Nothing that must be there."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing that must be there."""
        return {}


setup(
    cmdclass={"build_ext": BuildKernels}, ext_modules=[Extension("protein_lm.native.built", sources=[], optional=True)]
)
