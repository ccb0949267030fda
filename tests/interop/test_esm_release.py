"""Against a server on the loopback interface that sends what fair-esm's does, or does not."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from protein_lm.checkpoint.directory import load_model
from protein_lm.cli import main
from protein_lm.errors import InputError
from protein_lm.interop import esm_release
from protein_lm.interop.esm_release import fetch_release
from tests.interop.conftest import write_release

NAME = "esm2_t6_8M_UR50D"


class Handler(BaseHTTPRequestHandler):
    server: "Release"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        state = self.server
        content = state.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        state.asked.append((self.command, self.path.rpartition("/")[2], start))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if state.tells_size:
            self.send_header("Content-Length", str(len(content) - start))
        if state.tag is not None:
            self.send_header("ETag", f'"{state.tag or hashlib.md5(content).hexdigest()}"')
        self.end_headers()
        if with_body:
            body = state.sent.get(self.path, content)[start:]
            self.wfile.write(body[: state.limits.pop(0) if state.limits else None])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Release(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.sent: dict[str, bytes] = {}
        """What is sent in place of a file."""
        self.limits: list[int] = []
        self.asked: list[tuple[str, str, int]] = []
        self.tells_size = True
        self.tag: str | None = ""
        """None: no tag; empty: the MD5."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/fair-esm/"

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are part of the test


@pytest.fixture
def release(esm2, tmp_path, monkeypatch) -> Iterator[Release]:
    folder = tmp_path / "there"
    folder.mkdir()
    path = write_release(esm2, folder, NAME)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with Release() as running:
        regression = f"{NAME}-contact-regression.pt"
        running.files[f"/fair-esm/models/{NAME}.pt"] = path.read_bytes()
        running.files[f"/fair-esm/regression/{regression}"] = (folder / regression).read_bytes()
        monkeypatch.setattr(esm_release, "BASE", running.base)
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@contextmanager
def no_bar(label: str, num_bytes: int) -> Iterator[None]:
    assert label.startswith("fetching esm2_") and num_bytes > 0
    yield None


def test_a_name_is_downloaded_and_converted_once(release, esm2, tmp_path, capsys) -> None:
    assert main(["convert", NAME, "-o", str(tmp_path / "model")]) == 0
    assert f"weights of {NAME}" in capsys.readouterr().out
    model = load_model(tmp_path / "model")
    assert torch.equal(model.embedding.weight, esm2.embed_tokens.weight) and model.contact_head is not None
    folder = tmp_path / "torch/hub/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}-contact-regression.pt", f"{NAME}.pt"]
    num_requests = len(release.asked)
    assert main(["convert", NAME, "-o", str(tmp_path / "again"), "--set", "attention=elu"]) == 0
    assert len(release.asked) == num_requests
    assert main(["convert", "esm2_t6", "-o", str(tmp_path / "x")]) == 2
    assert "esm2_t6: neither a file or directory nor a release of ESM-2; these are" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["", None, "0123-17"])
def test_a_transfer_that_breaks_goes_on(release, tag) -> None:
    release.tag, release.limits = tag, [1000, 2000]
    path = fetch_release(NAME, no_bar, pause_seconds=0.01)
    assert path.read_bytes() == release.files[f"/fair-esm/models/{NAME}.pt"]
    assert [start for _, name, start in release.asked if name == f"{NAME}.pt"] == [0, 0, 1000, 3000]


@pytest.mark.parametrize(("tag", "fault"), [("", "instead of .* with MD5"), (None, "what came is damaged")])
def test_damage_on_the_way_is_found(release, tmp_path, tag, fault) -> None:
    place = f"/fair-esm/models/{NAME}.pt"
    content = bytearray(release.files[place])
    content[len(content) // 2] ^= 1
    release.tag, release.sent = tag, {place: bytes(content)}
    with pytest.raises(InputError, match=fault):
        fetch_release(NAME, no_bar, pause_seconds=0.01)
    assert not list((tmp_path / "torch/hub/checkpoints").iterdir())


def test_faults_of_the_server_are_one_line(release, monkeypatch) -> None:
    release.tells_size = False
    with pytest.raises(InputError, match="does not tell the size"):
        fetch_release(NAME, no_bar, pause_seconds=0.01)
    release.tells_size = True
    for base, fault in (
        (release.base + "x/", "the server says 404"),
        ("http://127.0.0.1:9/", r"127.0.0.1:9/models/.* cannot be reached .*; check network and address"),
    ):
        monkeypatch.setattr(esm_release, "BASE", base)
        with pytest.raises(InputError, match=fault):
            fetch_release(NAME, no_bar, pause_seconds=0.01)
