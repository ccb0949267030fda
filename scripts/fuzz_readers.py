"""Readers fuzzed with coverage as the guide, for as long as one likes; not part of the suite.

    pip install atheris
    python -m scripts.fuzz_readers -max_total_time=600

The first byte of an input chooses the block size and what happens on errors, the rest is the file. An input that breaks
something is kept as `crash-...` by atheris; it belongs into `test_readers_fuzz` once it is understood.
"""

import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["protein_lm.files", "protein_lm.io"]):  # pyright: ignore[reportAttributeAccessIssue]
    from protein_lm.choices import OnError
    from tests.io.test_readers_fuzz import WHOLE, check_read

BLOCK_BYTES = (1, 7, 64, 2**20)


def one_input(data: bytes) -> None:
    """Read a file of these bytes."""
    if not data:
        return
    FILE.write_bytes(data[1:])
    check_read(FILE, block_bytes=BLOCK_BYTES[data[0] % 4], on_error=list(OnError)[data[0] // 4 % 2])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        FILE, corpus = Path(name) / "in", Path(name) / "corpus"
        corpus.mkdir()
        for number, text in enumerate(WHOLE.values()):
            (corpus / str(number)).write_bytes(bytes([number]) + text)
        atheris.Setup([*sys.argv, str(corpus)], one_input)
        atheris.Fuzz()
