"""`python -m protein_lm` is `protein-lm`."""

import gc
import sys

_NEW_OBJECTS = 100_000
"""Before they are looked through for garbage. What imports make is none, and looking takes a twentieth of the start."""


def run() -> int:
    """Run the command line as the program that this process is; returns its exit status."""
    gc.set_threshold(_NEW_OBJECTS)
    from protein_lm.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
