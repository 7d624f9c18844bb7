"""A server for tests of fetching: files with ranges and ETags, and the Hub's API of data sets.

What it can do wrong on demand: answer slowly, break a connection, say that it is busy.
"""

import contextlib
import hashlib
import http.server
import json
import math
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

SHA = "a" * 40  # the commit of every data set


class Server(http.server.ThreadingHTTPServer):
    """Attributes:
    files: path -> content; a data set's files lie at /datasets/<name>/<path>.
    licences: data set -> licence.
    break_after: path -> bytes after which its connection breaks, once.
    busy: path -> how often it is answered with 503 first.
    served: bytes sent so far.
    hold_at: of `served`, from where nothing more is sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.licences: dict[str, str] = {}
        self.break_after: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.served = 0
        self.hold_at = math.inf

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Clients that are killed close their connections."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/(.+)/revision/(.+)", path):
            return self.describe(found[1])
        path = re.sub(r"^(/datasets/.+)/resolve/[^/]+/", r"\1/", path)
        content = self.server.files.get(path)
        if content is None:
            return self.reply(404, b"no such file")
        if self.server.busy.get(path, 0):
            self.server.busy[path] -= 1
            return self.reply(503, b"busy")
        return self.send(path, content)

    def describe(self, name: str) -> None:
        start = f"/datasets/{name}/"
        files = {p[len(start) :]: c for p, c in self.server.files.items() if p.startswith(start)}
        if not files:
            return self.reply(404, b'{"error": "Repository not found"}')
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                **({} if path.endswith(".csv") else {"lfs": _lfs(content)}),
            }
            for path, content in files.items()
        ]
        card = {"license": self.server.licences.get(name, "mit")}
        value = {"id": name, "sha": SHA, "siblings": siblings, "cardData": card, "tags": []}
        return self.reply(200, json.dumps(value).encode())

    def send(self, path: str, content: bytes) -> None:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", etag) == etag:
            start, status = int(asked[1]), 206
            if start >= len(content):
                return self.reply(416, b"")
        body = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "HEAD":
            return None
        limit = self.server.break_after.pop(path, len(body))
        for at in range(0, min(limit, len(body)), 1 << 14):
            piece = body[at : min(at + (1 << 14), limit)]
            while self.server.served >= self.server.hold_at:
                time.sleep(0.005)
            self.wfile.write(piece)
            self.server.served += len(piece)
        if limit < len(body):
            self.close_connection = True
        return None

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _lfs(content: bytes) -> dict:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that runs in a thread of this process."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
