"""A local server that speaks the protocol of the Hugging Face hub, with faults on demand."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Hub:
    """One data set, `owner/set`, with these files.

    `cut`: how many bytes an answer has at most, by file, as often as `times` says. `wrong`: files
    that are sent with other bytes than were named. `gone`: files that are listed, and not there.
    """

    files: dict[str, bytes]
    licence: str | None = "mit"
    cut: dict[str, int] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    wrong: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    url: str = ""
    # (file, first byte) of every answer with a content.
    sent: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/datasets/owner/set/tree/"):
                self._json([
                    {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                    for name, data in hub.files.items()
                ])  # fmt: skip
            elif path.startswith("/api/datasets/owner/set"):
                siblings = [
                    {"rfilename": n, "size": len(d), "blobId": "0" * 40,
                     "lfs": {"size": len(d), "sha256": _digest(d), "pointerSize": 130}}
                    for n, d in hub.files.items()
                ]  # fmt: skip
                card = {"license": hub.licence} if hub.licence else {}
                self._json({"id": "owner/set", "sha": COMMIT, "siblings": siblings,
                            "cardData": card, "private": False, "tags": [],
                            "downloads": 0, "likes": 0})  # fmt: skip
            elif path.startswith("/datasets/owner/set/resolve/"):
                self._file(body=True)
            else:
                self._json({"error": "Repository not found"}, 404, "RepoNotFound")

        def _json(self, value: Any, status: int = 200, code: str = "") -> None:
            data = dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(data)

        def _file(self, body: bool) -> None:
            name = unquote(urlsplit(self.path).path).partition(f"/resolve/{COMMIT}/")[2]
            data = hub.files.get(name)
            if data is None or name in hub.gone:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = self.headers.get("Range", "bytes=0-").partition("=")[2]
            start = int(asked.partition("-")[0])
            content = data[start:]
            if name in hub.wrong:
                content = bytes(len(content))
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            # A file of LFS: its ETag is the sha256 of its content.
            self.send_header("ETag", f'"{_digest(data)}"')
            self.send_header("X-Linked-Etag", f'"{_digest(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            hub.sent.append((name, start))
            if name in hub.cut and hub.times[name] > 0:
                hub.times[name] -= 1
                self.wfile.write(content[: hub.cut[name]])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
