"""Downloads from a real HTTP server on the loopback interface that misbehaves in every way that servers do."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from protein_lm.cli import main
from protein_lm.errors import ConfigError, InputError, OutputError
from protein_lm.files.output import claimed
from protein_lm.files.uniprot_release import FILES, METALINK, UniProtServer

CONTENT = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
LOCATION = "/" + FILES["uniref50"]
NAME = "uniref50.fasta.gz"


class Handler(BaseHTTPRequestHandler):
    server: "Misbehaving"

    def do_GET(self) -> None:
        state = self.server
        state.requests[self.path.rpartition("/")[2]] += 1
        if self.path.startswith("/old/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/old"))
            self.end_headers()
        elif self.path.endswith(METALINK) and not self.path.startswith("/x/"):
            self._send(state.metalink(), 0)
        elif self.path == LOCATION:
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if state.takes_ranges else 0
            state.starts.append(start)
            self._send(state.content, start, state.limits.pop(0) if state.limits else None)
        else:
            self.send_error(404)

    def _send(self, content: bytes, start: int, limit: int | None = None) -> None:
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:limit])
        self.wfile.flush()
        if limit is not None and self.server.stalls:
            self.server.released.wait(5)
        if limit is not None:
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


class Misbehaving(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.release, self.takes_ranges, self.stalls = "2026_04", True, False
        self.limits: list[int] = []
        self.starts: list[int] = []
        self.requests: Counter[str] = Counter()
        self.listed = CONTENT
        self.released = threading.Event()

    def metalink(self) -> bytes:
        digest = hashlib.md5(self.listed).hexdigest()
        return f"""<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/"><version>{self.release}</version><files>
<file name="other"><size>1</size><verification><hash type="md5">0</hash></verification></file>
<file name="{NAME}"><size>{len(self.listed)}</size><verification><hash type="md5">{digest}</hash></verification></file>
</files></metalink>""".encode()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are part of the test


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Misbehaving() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def fetch(base: str, folder: Path, release: str = "current") -> Path:
    with closing(UniProtServer(base, stall_seconds=0.4, pause_seconds=0.001)) as remote:
        return remote.fetch(remote.find("uniref50", release), folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("prefix", ["", "old/", "old"])
def test_a_file_arrives_also_by_redirects(server, tmp_path, prefix):
    path = fetch(server.base + prefix, tmp_path / "new")
    assert path.read_bytes() == CONTENT and names(tmp_path / "new") == [NAME]


def test_a_broken_transfer_is_resumed_where_it_was(server, tmp_path):
    server.limits = [70_000, 1, 50_000]
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 70_000, 70_001, 120_001]


def test_a_stalled_transfer_is_taken_up_again(server, tmp_path):
    server.limits, server.stalls = [30_000], True
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 30_000]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.limits, server.takes_ranges = [70_000], False
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT


def test_a_dead_server_leaves_a_part_from_which_the_next_command_resumes(server, tmp_path):
    server.limits = [60_000, *[0] * 6]
    with pytest.raises(
        InputError, match=r"6 times in a row; 60,000 of 200,000 bytes are there, and the same command resumes from them"
    ):
        fetch(server.base, tmp_path)
    assert names(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    server.starts.clear()
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT
    assert server.starts == [60_000] and names(tmp_path) == [NAME]


def test_a_new_release_between_two_parts_begins_anew(server, tmp_path):
    server.limits = [60_000, *[0] * 6]
    with pytest.raises(InputError):
        fetch(server.base, tmp_path)
    server.release, server.content, server.listed = "2026_05", CONTENT[::-1], CONTENT[::-1]
    server.starts.clear()
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT[::-1]
    assert server.starts == [0]


def test_a_wrong_byte_is_never_kept(server, tmp_path):
    server.content = CONTENT[:5000] + b"?" + CONTENT[5001:]
    with pytest.raises(InputError, match=r"instead of 200,000 bytes with MD5 .*; it was removed, fetch it again"):
        fetch(server.base, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("more", [-10, 10])
def test_a_file_of_another_size_is_never_kept(server, tmp_path, more):
    server.content = CONTENT + b"x" * more if more > 0 else CONTENT[:more]
    with pytest.raises(InputError, match=r"it was removed, fetch it again|bytes are there"):
        fetch(server.base, tmp_path)
    assert NAME not in names(tmp_path)


def test_a_part_of_unknown_origin_is_not_trusted(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"rubbish")
    assert fetch(server.base, tmp_path).read_bytes() == CONTENT


def test_two_commands_do_not_fetch_into_one_part(server, tmp_path):
    with claimed(tmp_path / NAME), pytest.raises(OutputError, match=r"gz: another command is at work there"):
        fetch(server.base, tmp_path)
    assert names(tmp_path) == []


def test_what_cannot_be_fetched(server, tmp_path):
    with (
        closing(UniProtServer(server.base)) as remote,
        pytest.raises(ConfigError, match="'pdb' cannot be fetched; choose from swissprot"),
    ):
        remote.find("pdb")
    with pytest.raises(
        InputError, match="the server has release 2026_04, not 2020_01; UniProt keeps older ones as archives"
    ):
        fetch(server.base, tmp_path, "2020_01")
    with (
        closing(UniProtServer(server.base)) as remote,
        pytest.raises(InputError, match=r"does not list uniprot_sprot\.fasta\.gz"),
    ):
        remote.find("swissprot")
    with pytest.raises(InputError, match="the server says 404; check the address"):
        fetch(server.base + "x", tmp_path)
    with pytest.raises(InputError, match=r"cannot be reached \("):
        fetch("http://127.0.0.1:9/", tmp_path)
    with pytest.raises(ConfigError, match="must begin with http"):
        UniProtServer("ftp://ftp.uniprot.org/")
    (tmp_path / NAME).touch()
    with pytest.raises(OutputError, match="exists already"):
        fetch(server.base, tmp_path)


def test_no_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    with pytest.raises(OutputError, match="has 100,000 bytes free, and 200,000 are to come"):
        fetch(server.base, tmp_path)


def test_command_line(server, tmp_path, capsys):
    arguments = ["data", "download", "uniref50", "-o", str(tmp_path / "new"), "--base", server.base]
    assert main([*arguments, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"{LOCATION}: release 2026_04, 200,000 bytes, MD5 {hashlib.md5(CONTENT).hexdigest()}" in told
    assert not (tmp_path / "new").exists() and server.requests[NAME] == 0
    assert main(arguments) == 0
    assert "complete, size and MD5 are those of the release" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
