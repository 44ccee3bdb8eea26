"""A server on the way of an import that fails for a while, and one that will never do: over real sockets."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from tenacity import wait_none

from storage import tries
from storage.importing import import_files
from storage.store import Store, StoreError

LINE = b'{"instruction": "Say %d.", "output": "%d"}\n'
CONTENT = b"".join(LINE % (i, i) for i in range(300))


class Failing(BaseHTTPRequestHandler):
    """/CODE/TIMES/WHEN/raw.jsonl: the first TIMES requests fail with a status, or with a connection that is cut (0);
    WHEN is of which: `any`, or `piece`, as a part of the file is asked for. `stream` is sent without a length."""

    asked: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(CONTENT)

    def answer(self, body):
        _, code, times, when, _ = self.path.partition("?")[0].split("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if when == "any" or wanted:
            self.asked[self.path] += 1
            if self.asked[self.path] <= int(times):
                if code == "0":
                    self.close_connection = True
                    return
                self.send_response(int(code))
                self.send_header("Content-Length", "0")
                return self.end_headers()
        if when == "stream":  # no length, no pieces
            self.close_connection = True
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(body)
        if wanted and body:
            body = body[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/jsonl")
        self.send_header("Content-Length", str(len(body) if body else len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_a_file_that_is_sent_without_its_length_is_refused_with_the_remedy(server, tmp_path):
    with pytest.raises(StoreError, match=r"without its length .* fetch it, and import the file"):
        import_files(Store(tmp_path), [f"{server}/200/0/stream/raw.jsonl"], "pool")


@pytest.mark.parametrize("when", ["any", "piece"])
@pytest.mark.parametrize("code", [503, 429, 0])
def test_a_server_that_fails_twice_is_asked_a_third_time(server, code, when, tmp_path, monkeypatch):
    if code != 503:  # once with real pauses is enough
        monkeypatch.setattr(tries, "_WAIT", wait_none())
    path = f"/{code}/2/{when}/raw.jsonl"
    made = import_files(Store(tmp_path), [f"{server}{path}"], "pool")
    assert (made.rows, made.rejected) == (300, 0)
    assert Failing.asked[path] > 2


@pytest.mark.parametrize("when, told", [("any", "cannot be opened"), ("piece", "was answered no further")])
@pytest.mark.parametrize("code, times", [(503, 5), (403, 1), (404, 1)])
def test_what_goes_on_failing_is_told_and_what_never_works_is_asked_once(
    server, code, times, when, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(tries, "_WAIT", wait_none())
    path = f"/{code}/99/{when}/gone.jsonl"
    told = "there is nothing at" if (code, when) == (404, "any") else told
    with pytest.raises(StoreError, match=f"{told}.*{code}|{re.escape(server)}.* {told}.*{code}") as why:
        import_files(Store(tmp_path), [f"{server}{path}?key=secret"], "pool")
    assert "secret" not in str(why.value)
    asked = Failing.asked[f"{path}?key=secret"]
    assert asked == times if when == "piece" or code == 503 else asked <= 3  # as a folder, as a file, and its size
    assert not Store(tmp_path).names()
