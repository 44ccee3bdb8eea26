"""A small real server that speaks as OpenAI's does, and misbehaves as it is told."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from storage.schema import message
from synthesis.openai_engine import OpenAIEngine


def ask(*texts):
    return [[message("user", t)] for t in texts]


class Server:
    """Answers each chat with its last message in capitals; `manner(text, how often it came)` may have it misbehave."""

    def __init__(self, manner):
        self.manner, self.seen, self.bodies = manner, Counter(), []
        self.flying = self.most = 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body.get("messages", [{"content": self.path}])[-1]["content"]
                with lock:
                    outer.bodies.append((body, self.headers.get("Authorization")))
                    outer.seen[text] += 1
                    outer.flying += 1
                    outer.most = max(outer.most, outer.flying)
                try:
                    told = outer.manner(text, outer.seen[text])
                    said = (200, json.dumps(told).encode(), "application/json") if isinstance(told, dict) else told
                    said = said or (200, answer(text), "application/json")
                finally:
                    with lock:
                        outer.flying -= 1
                status, content, kind, *headers = said
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content) + (50 if "short" in headers else 0)))
                if status == 429:
                    self.send_header("Retry-After", "0.1")
                self.end_headers()
                self.wfile.write(content)
                if "short" in headers:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def chat_answer(*contents, **more):
    choices = [{"index": i, "message": {"content": c}, "finish_reason": "stop"} for i, c in enumerate(contents)]
    return {"choices": choices} | more


def answer(text, finish="stop"):
    choice = {"index": 0, "message": {"content": text.upper()}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def engine(server, **settings):
    return OpenAIEngine("model", url=server.url, **{"timeout": 20, "attempts": 3} | settings)
