from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path):
    def write(content: bytes | str, name: str = "in.fasta") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
