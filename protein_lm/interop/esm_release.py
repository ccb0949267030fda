"""ESM-2 as its authors released it, fetched by name into the folder where fair-esm keeps it too."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from protein_lm.errors import InputError
from protein_lm.files.download import Connection, RemoteFile
from protein_lm.interop.fair_esm import REGRESSION

BASE = "https://dl.fbaipublicfiles.com/fair-esm/"
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None] | None]]
"""Label and number of bytes -> a context with the function that shows how many bytes have arrived."""


def fetch_release(name: str, bar: Bar, **patience: Any) -> Path:
    """The checkpoint of a released model, with its contact regression next to it; files that exist are not fetched again.

    Args:
        name: one of `foreign.RELEASES`.
        bar: shows the progress of each file.
        patience: settings of the connection.

    Raises:
        InputError: the server cannot be reached or broke off, or the file is damaged.
        OutputError: there is no room for it.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    connection = Connection(**patience)
    try:
        for path in (f"models/{name}.pt", f"regression/{name}{REGRESSION}.pt"):
            if not (folder / Path(path).name).exists():
                _fetch(connection, BASE + path, folder, bar)
    finally:
        connection.close()
    return folder / f"{name}.pt"


def _fetch(connection: Connection, url: str, folder: Path, bar: Bar) -> None:
    headers = connection.request(url, "HEAD").headers
    size, tag = headers.get("Content-Length", ""), headers.get("ETag", "").strip('"')
    if not size.isdigit():
        raise InputError(f"{url}: the server does not tell the size, so that nothing could be checked; try again later")
    # The tag is the MD5 where the server got the file in one piece; in several, it is something else with a dash.
    is_md5 = len(tag) == 32 and all(digit in "0123456789abcdef" for digit in tag)
    file = RemoteFile(url, tag, int(size), tag if is_md5 else None)
    with bar(f"fetching {file.name}", file.num_bytes) as on_progress:
        path = connection.fetch(file, folder, on_progress)
    if not _is_whole(path):
        path.unlink()
        raise InputError(f"{url}: what came is damaged; it was removed, fetch it again")


def _is_whole(path: Path) -> bool:
    """Whether the checksums inside a torch file are right; the oldest form has none."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.testzip() is None
        except zipfile.BadZipFile:
            return False
