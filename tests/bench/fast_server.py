"""An OpenAI-compatible server that costs next to nothing. Run in a process of its own:

    with FastServer() as server:
        ...  # server.url; then server.seen() -> items, seconds, cpu_seconds

Every POST gets the same answer of 300 tokens, as server-sent events when its body asks for a
stream. Bodies are counted, not parsed.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ANSWER_TOKENS = 300
# A request with a smaller body is no item: a client's probe or warm-up.
MIN_ITEM_BYTES = 400
# Where "stream" is looked for: the body's first and last bytes, between them are the images.
_KEPT_BYTES = 4096
_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Seen:
    """What the server saw since it was last asked; `seconds` from the first item's request on."""

    items: int
    seconds: float
    cpu_seconds: float


class FastServer:
    """The server's process. A streamed answer goes out in `writes` parts, at most one per token.

    With `slots` it works on so many requests at a time, each for `seconds`; others wait.
    """

    def __init__(self, writes: int = 8, slots: int = 0, seconds: float = 0.0) -> None:
        command = [sys.executable, __file__, str(writes), str(slots), str(seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def seen(self) -> Seen:
        """What came since the last call."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/seen", timeout=30) as answer:
            return Seen(**json.load(answer))

    def __enter__(self) -> "FastServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def answer_text() -> str:
    """A well-formed chain of thought of about 300 tokens."""
    dimensions = ("Semantic consistency", "Aesthetics", "Authenticity", "Composition", "Detail")
    first, second = (8, 7, 9, 8, 7), (6, 7, 5, 6, 7)
    lines = [
        f"{number}. {name}: Image 1 ({a}/10) - the subject of the caption is shown in full, with "
        f"plausible light and colours; Image 2 ({b}/10) - parts of it are missing, and textures "
        "look smeared where surfaces meet."
        for number, (name, a, b) in enumerate(zip(dimensions, first, second, strict=True), 1)
    ]
    lines += ["Total score:"]
    lines += [
        f"Image {index}: {'+'.join(map(str, scores))}={sum(scores)}"
        for index, scores in enumerate((first, second), 1)
    ]
    reasoning = "\n".join(lines)
    return f"<think>\n{reasoning}\n</think>\n<answer>Image 1 is better</answer>"


def _head(status: str, content_type: str, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


def _json(value: Any, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    return _head(status, "application/json", len(body)) + body


def _completion() -> bytes:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer_text(),
        "refusal": None,
        "tool_calls": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 800,
        "completion_tokens": ANSWER_TOKENS,
        "total_tokens": 800 + ANSWER_TOKENS,
    }
    return _json({
        "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "mock",
        "choices": [choice], "usage": usage,
    })  # fmt: skip


def _stream(writes: int) -> list[bytes]:
    """One event per token, each an HTTP chunk as from a real server, in so many writes."""
    text = answer_text()
    cuts = [len(text) * number // ANSWER_TOKENS for number in range(ANSWER_TOKENS + 1)]
    deltas = [{"content": text[a:b]} for a, b in pairwise(cuts)]
    deltas[0] |= {"role": "assistant"}
    events = [
        json.dumps({
            "id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "mock",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
        })
        for delta, reason in [*((delta, None) for delta in deltas), ({}, "stop")]
    ]  # fmt: skip
    pieces = [f"data: {event}\n\n".encode() for event in [*events, "[DONE]"]]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    size = -(-len(chunks) // writes)
    chunks[0] = _head("200 OK", "text/event-stream", None) + chunks[0]
    chunks[-1] += b"0\r\n\r\n"
    return [b"".join(chunks[at : at + size]) for at in range(0, len(chunks), size)]


_BUFFER = bytearray(1 << 20)
_VIEW = memoryview(_BUFFER)
_MODELS = _json({"object": "list", "data": [{"id": "mock", "object": "model"}]})
_UNKNOWN = _json({"error": {"message": "no such page"}}, "404 Not Found")
_NO_LENGTH = _json({"error": {"message": "a Content-Length is needed"}}, "411 Length Required")


class _Record:
    items, first, last, cpu = 0, 0.0, 0.0, 0.0
    # Requests that are worked on, and what delivers the answers to those that wait.
    working, waiting = 0, deque[Callable[[], None]]()


class _Connection(asyncio.BufferedProtocol):
    """Reads into one buffer for all connections, which is used up before the next read."""

    completion: bytes
    stream: list[bytes]
    slots, seconds = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""  # the start of a head that has not come whole
        self._ends = b""  # of the body: its first and last bytes
        self._size = self._missing = 0  # bytes of the body, and those still to come

    def get_buffer(self, sizehint: int) -> memoryview:
        _BUFFER[: len(self._head)] = self._head
        return _VIEW[len(self._head) :]

    def buffer_updated(self, count: int) -> None:
        at, end, self._head = 0, len(self._head) + count, b""
        while at < end:
            if not self._missing:
                split = _BUFFER.find(b"\r\n\r\n", at, end)
                if split < 0:
                    self._head = bytes(_VIEW[at:end])
                    return
                self._begin(bytes(_VIEW[at:split]))
                at = split + 4
            body = min(end - at, self._missing)
            if not body:
                continue
            if self._missing == self._size:
                self._ends = bytes(_VIEW[at : at + min(body, _KEPT_BYTES)])
            last = max(0, self._missing - _KEPT_BYTES)
            if last < body:
                self._ends += bytes(_VIEW[at + last : at + body])
            at += body
            self._missing -= body
            if not self._missing:
                self._answer()

    def _begin(self, head: bytes) -> None:
        if head.startswith(b"GET"):
            self._transport.write(_page(head))
            return
        length = _LENGTH.search(head)
        if not length:
            self._transport.write(_NO_LENGTH)
            self._transport.close()
            return
        self._size = self._missing = int(length[1])
        if not _Record.items and not _Record.first and self._size >= MIN_ITEM_BYTES:
            _Record.first = time.monotonic()

    def _answer(self) -> None:
        if self.slots and self._size >= MIN_ITEM_BYTES:
            _Record.waiting.append(self._deliver)
            self._begin_work()
        else:
            self._deliver()

    def _begin_work(self) -> None:
        while _Record.waiting and _Record.working < self.slots:
            _Record.working += 1
            asyncio.get_running_loop().call_later(
                self.seconds, self._end_work, _Record.waiting.popleft()
            )

    def _end_work(self, deliver: Callable[[], None]) -> None:
        _Record.working -= 1
        deliver()
        self._begin_work()

    def _deliver(self) -> None:
        if self._transport.is_closing():
            return
        if _STREAM.search(self._ends):
            self._write(iter(self.stream))
        else:
            self._transport.write(self.completion)
        if self._size >= MIN_ITEM_BYTES:
            _Record.items += 1
            _Record.last = time.monotonic()

    def _write(self, parts: Iterator[bytes]) -> None:
        """One part per turn of the loop, so that other connections' come in between."""
        part = next(parts, None)
        if part and not self._transport.is_closing():
            self._transport.write(part)
            asyncio.get_running_loop().call_soon(self._write, parts)


def _page(head: bytes) -> bytes:
    path = head.split(b" ", 2)[1]
    if path == b"/v1/models":
        return _MODELS
    if path != b"/seen":
        return _UNKNOWN
    cpu = sum(os.times()[:2])
    seen = {
        "items": _Record.items,
        "seconds": _Record.last - _Record.first,
        "cpu_seconds": cpu - _Record.cpu,
    }
    _Record.items, _Record.first, _Record.last, _Record.cpu = 0, 0.0, 0.0, cpu
    return _json(seen)


async def _main(writes: int, slots: int, seconds: float) -> None:
    _Connection.completion, _Connection.stream = _completion(), _stream(writes)
    _Connection.slots, _Connection.seconds = slots, seconds
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
