"""Models by their name on the Hub, against an HTTP server on the loopback interface that answers as the Hub does."""

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from protein_lm import ProteinLM
from protein_lm.checkpoint.base_model import WEIGHTS
from protein_lm.checkpoint.directory import load_model, push_model, save_model
from protein_lm.checkpoint.hub import is_hub_name
from protein_lm.cli import main
from protein_lm.errors import ModelError, OutputError
from tests.conftest import fresh_model

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    server: "FakeHub"

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        if not (found := re.match(r"/api/models/(\w+/\w+)(?:/(revision|tree)/([^?/]+))?", self.path)):
            return self._file(with_body=True)
        repository, what, revision = found.groups()
        folder = self.server.folder / repository
        if not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        if repository in self.server.gated:
            return self._refuse(403, "GatedRepo")
        if revision not in (None, "main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if what == "tree":
            return self._json([{"type": "file", "path": n, "size": s, "oid": f"{n}{s}"} for n, s in sizes.items()])
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return self._json({"id": repository, "sha": COMMIT, "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            return self._refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            content = json.loads(body)
            repository = f"{content['organization']}/{content['name']}"
            (self.server.folder / repository).mkdir(parents=True, exist_ok=True)
            return self._json({"url": f"{self.server.url}/{repository}", "id": repository, "name": repository})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if found := re.match(r"/api/models/(\w+/\w+)/commit/", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    (self.server.folder / found[1] / line["value"]["path"]).write_bytes(content)
            url = f"{self.server.url}/{found[1]}/commit/{COMMIT}"
            return self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self._json({})  # the check of a card's first lines

    def _file(self, *, with_body: bool) -> None:
        found = re.match(r"/(\w+/\w+)/resolve/[^/]+/(.+)", self.path)
        path = self.server.folder / found[1] / found[2] if found else None
        if path is None or not path.is_file():
            return self._refuse(404, "EntryNotFound")
        content = path.read_bytes()
        if with_body:
            self.server.sent.append(path.name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{path.name}{len(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content[: self.server.limit])
            return None
        return None

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.sent: list[str] = []
        self.gated: list[str] = []
        self.limit: int | None = None
        self.refuses = False


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with FakeHub(tmp_path / "hub") as server:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "of-the-test")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def remote(hub: FakeHub) -> FakeHub:
    """The Hub with one model, org/model, and more in its repository than a model."""
    save_model(fresh_model(), hub.folder / "org/model")
    (hub.folder / "org/model/pytorch_model.bin").write_bytes(b"\x80\x04a pickle")
    return hub


def test_names() -> None:
    assert all(map(is_hub_name, ["org/model", "org/model@main", "a-b/c_d.e@refs/pr/1"]))
    assert not any(map(is_hub_name, ["model", "/models/model", "../model", "a/b/c", "org/", "~/model", "org/model@"]))


def test_a_name_on_the_hub_stands_for_its_model(remote, capsys) -> None:
    model, size = load_model("org/model"), (remote.folder / "org/model/model.safetensors").stat().st_size
    expected = fresh_model().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert f"org/model: fetching model.safetensors ({size:,} bytes), README.md" in capsys.readouterr().err
    assert sorted(remote.sent) == ["README.md", "config.json", "model.safetensors"]
    load_model("org/model@v1")
    assert len(remote.sent) == 3 and "fetching" not in capsys.readouterr().err


def test_a_folder_here_comes_first(remote) -> None:
    save_model(fresh_model(width=16), Path("org/model"))
    assert load_model("org/model").config.width == 16 and not remote.sent


def test_without_network_the_cache_is_used(remote, capsys) -> None:
    load_model("org/model")
    remote.shutdown()
    remote.server_close()
    assert load_model("org/model").config.width == 32
    assert f"org/model: the Hub cannot be reached; using commit {COMMIT} of its cache" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"^org/other: no such model .* the Hub cannot be reached to look for"):
        load_model("org/other")


def test_what_the_hub_does_not_give(remote) -> None:
    remote.gated.append("org/secret")
    (remote.folder / "org/secret").mkdir()
    for name, message in {
        "org/absent": "org/absent: no such model directory or run, and no model on the Hub that you may read",
        "org/model@v2": "org/model is on the Hub, but has no revision 'v2'",
        "org/secret": "org/secret: the Hub gives it to those who agreed to its terms",
    }.items():
        with pytest.raises(ModelError, match=message) as error:
            load_model(name)
        assert "\n" not in str(error.value)


def test_weights_that_are_not_ours_are_not_fetched(remote, capsys) -> None:
    (remote.folder / "org/model/config.json").write_text(json.dumps({"model_type": "esm"}))
    assert main(["info", "org/model"]) == 2
    error = capsys.readouterr().err
    assert (
        "org/model, on the Hub, cannot be used: a model of the library transformers, of type 'esm'; download it"
        in error
    )
    assert "with: hf download org/model --local-dir DIR, and then: protein-lm convert DIR -o MODEL" in error
    (remote.folder / "org/other").mkdir()
    (remote.folder / "org/other/config.json").write_text(json.dumps({"sizes": "esm2"}))
    with pytest.raises(
        ModelError, match=r"org/other, on the Hub, cannot be used: .* not the config.json of a protein_lm"
    ):
        load_model("org/other")
    assert remote.sent == ["config.json"] * 2


def test_convert_fetches_from_the_hub_only_what_it_knows_what_to_do_with(remote, capsys) -> None:
    assert main(["convert", "org/model@v1", "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert "a repository of the Hub is downloaded with: hf download org/model --revision v1 --local-dir DIR" in error
    for verb in (["info"], ["convert", "-o", "out"], ["convert", "-o", "out", "--set", "attention=elu"]):
        assert main([verb[0], "facebook/esm2_t6_8M_UR50D", *verb[1:]]) == 2
        assert "made a model with: protein-lm convert esm2_t6_8M_UR50D -o DIR" in capsys.readouterr().err
    assert remote.sent == []
    assert main(["convert", "org/model", "-o", "out", "--set", "attention=elu"]) == 0
    assert load_model("out").config.attention_name == "elu"


@pytest.mark.slow
def test_a_broken_connection(remote) -> None:
    remote.limit = 100
    with pytest.raises(ModelError, match="org/model: fetching it from the Hub failed, try again"):
        load_model("org/model")
    remote.limit = None
    assert load_model("org/model").config.width == 32


def test_push(hub, tmp_path, capsys) -> None:
    save_model(fresh_model(), tmp_path / "run/best")
    (tmp_path / "run/best/training_state.json").write_text("{}")
    assert main(["push", "run", "org/mine", "--private"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/org/mine/commit/{COMMIT}\n"
    assert sorted(path.name for path in (hub.folder / "org/mine").iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    shutil.rmtree(tmp_path / "run")
    assert load_model("org/mine").config.width == 32


def test_push_refuses(hub, tmp_path) -> None:
    save_model(fresh_model(), tmp_path / "model")
    with pytest.raises(ModelError, match="mine: no name of a model on the Hub; it has the form org/model"):
        push_model("model", "mine")
    hub.refuses = True
    with pytest.raises(ModelError, match="org/mine: the Hub does not take it; you may have to log in"):
        push_model("model", "org/mine")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"base": {}}))
    with pytest.raises(ModelError, match="stands on a model that stays here; put a merged one on the Hub"):
        push_model("model", "org/mine")


def test_the_methods_of_a_model(hub, tmp_path) -> None:
    model = fresh_model(objective="causal").eval()
    model.arrange_for_decoding()  # as `from_pretrained` does: what is saved does not have its gaps
    model.save_pretrained(tmp_path / "saved")
    assert model.push_to_hub("org/mine", private=True) == f"{hub.url}/org/mine/commit/{COMMIT}"
    for name in (str(tmp_path / "saved"), "org/mine"):
        found = ProteinLM.from_pretrained(name, device="cpu")
        assert found.config == model.config and not found.training
        for key, weight in model.state_dict().items():
            assert torch.equal(found.state_dict()[key], weight), key
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    assert (tmp_path / "saved" / WEIGHTS).stat().st_size < num_bytes + 2**14
    with pytest.raises(OutputError, match="saved"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match="no such model directory or run"):
        ProteinLM.from_pretrained(tmp_path / "none")
