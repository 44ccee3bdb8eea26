"""Pushing to the Hub, against a server on this machine that answers as the Hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from storage.hub import push
from storage.store import StoreError


class Hub(BaseHTTPRequestHandler):
    """One data set, me/mine: whether it is there, whether it is private, and its files."""

    private: bool | None
    files: dict[str, bytes]

    def log_message(self, *_):
        pass

    def answer(self, said, code=200, **headers):
        content = json.dumps(said).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        hub = self.server
        if hub.private is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if "/tree/" in self.path:
            return self.answer([{"type": "file", "path": f, "size": 1, "oid": "0" * 40} for f in hub.files])
        siblings = [{"rfilename": file} for file in hub.files]
        self.answer({"id": "me/mine", "private": hub.private, "sha": "0" * 40, "siblings": siblings, "tags": []})

    def do_POST(self):
        hub = self.server
        said = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            if hub.private is not None:
                return self.answer({"url": "https://huggingface.co/datasets/me/mine"}, 409)
            hub.private = json.loads(said).get("visibility") == "private"
            return self.answer({"url": "https://huggingface.co/datasets/me/mine"})
        if "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(said)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        if "/commit/" not in self.path:  # what it knows of these paths
            return self.answer([])
        for line in said.splitlines():
            change = json.loads(line)
            if change["key"] == "file":
                hub.files[change["value"]["path"]] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "deletedFile":
                del hub.files[change["value"]["path"]]
        at = f"https://huggingface.co/datasets/me/mine/commit/{'1' * 40}"
        self.answer({"commitUrl": at, "commitOid": "1" * 40, "success": True})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.private, server.files = None, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# rows")
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    yield server
    server.shutdown()


def test_a_new_data_set_is_private_unless_it_is_to_be_public(hub, tmp_path):
    push(tmp_path, "me/mine")
    assert hub.private is True
    assert set(hub.files) == {"README.md", "data/train-00000-of-00001.parquet"}
    hub.private = None
    push(tmp_path, "me/mine", public=True)
    assert hub.private is False


def test_what_everybody_can_read_is_written_only_if_told(hub, tmp_path):
    hub.private = False
    with pytest.raises(StoreError, match="not pushed: everybody can read the data set me/mine; say --public"):
        push(tmp_path, "me/mine")
    assert hub.files == {}
    push(tmp_path, "me/mine", public=True)
    assert len(hub.files) == 2


def test_rows_of_an_earlier_push_go_and_all_else_stays(hub, tmp_path):
    hub.private = True
    old = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
    hub.files = dict.fromkeys((*old, "data/test-00000.parquet", "LICENSE", ".gitattributes"), b"old")
    push(tmp_path, "me/mine")
    mine = {"README.md", "data/train-00000-of-00001.parquet"}
    assert set(hub.files) == mine | {"data/test-00000.parquet", "LICENSE", ".gitattributes"}
