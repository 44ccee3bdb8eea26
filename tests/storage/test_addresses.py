"""What opens an address is kept and shown nowhere."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from storage.addresses import shown, without_secrets
from storage.importing import import_files
from storage.place import Place
from storage.store import Store, StoreError

FILES = Path(__file__).parent / "files"


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://me:pass@host:8000/a/raw.csv?token=x/y::z", "https://host:8000/a/raw.csv"),
        ("https://host/a b.jsonl?sig=a b#c", "https://host/a b.jsonl"),
        ("zip://a.jsonl::https://me:p@ss@host/x.zip?token=1", "zip://a.jsonl::https://host/x.zip"),
        ("s3://key:secret@bucket/a#b.jsonl", "s3://bucket/a#b.jsonl"),
        ("https://host/x.jsonl#access_token=1", "https://host/x.jsonl"),
        ("raw.jsonl", "raw.jsonl"),
    ],
)
def test_user_password_and_query_go(address, kept):
    assert shown(address) == kept
    assert without_secrets(f"<{address}> is gone", address) == f"<{kept}> is gone"


def test_a_text_that_names_an_address_keeps_all_else():
    said = "401, message='No', url='https://me:p@host/x?token=1' (see https://help)"
    assert without_secrets(said) == "401, message='No', url='https://host/x' (see https://help)"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(FILES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:swordfish@127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_import_from_a_signed_address_keeps_no_secret_and_is_told_by_its_path(tmp_path, served):
    store = Store(tmp_path)
    made = import_files(store, [f"{served}/alpaca.csv?token=hunter2"], "pool")
    assert made.kinds == {"alpaca.csv": "CSV"}
    assert set(store.read_side(made.dataset, "origin")["file"]) == {"alpaca.csv"}
    (path,) = store.run_facts(made.dataset)["paths"]
    assert path.startswith("http://127.0.0.1:") and path.endswith("/alpaca.csv")
    for file in (f for f in tmp_path.rglob("*") if f.is_file()):
        content = file.read_bytes()
        assert b"hunter2" not in content and b"swordfish" not in content


def test_nor_does_an_error_say_it(tmp_path, served):
    for wrong in (f"{served}/gone.jsonl?token=hunter2", "nosuch://me:swordfish@host/x?token=hunter2"):
        with pytest.raises(StoreError) as why:
            import_files(Store(tmp_path), [wrong], "pool")
        assert "hunter2" not in str(why.value) and "swordfish" not in str(why.value)
    with pytest.raises(StoreError) as why:
        Place("nosuch://me:swordfish@host/x")
    assert "swordfish" not in str(why.value)
