"""What nodes say to each other before a training: lines of JSON, and the wait for them."""

import json
import math
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

GREETING = {"meeting": "cot-reward 2"}
# A stranger on the port must neither fill the memory nor hold up the others.
STRANGER_SECONDS = 5.0
_MOST_BYTES = 2**20
_TOLD_EVERY = 30.0  # seconds
# A machine that is gone without a word is noticed after a minute: seconds, seconds, number.
_IDLE, _BETWEEN, _TRIES = 30, 10, 3

Message = dict[str, Any]


class Clock:
    """How long a node still waits (seconds), and when it says so again.

    `patient`: it says so for the first time after a while, since the others may be at work.
    """

    def __init__(self, wait: float, patient: bool = False) -> None:
        now = time.monotonic()
        self._end, self._told = now + wait, now if patient else -math.inf

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def pause(self) -> float:
        return max(0.01, min(1.0, self._end - time.monotonic()))

    def tell(self, message: str) -> None:
        if time.monotonic() - self._told >= _TOLD_EVERY:
            self._told = time.monotonic()
            print(message, file=sys.stderr, flush=True)


def keep_alive(peer: socket.socket) -> None:
    """Have the connection end when the other machine does, also where nothing is sent."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _IDLE),
        (socket.TCP_KEEPINTVL, _BETWEEN),
        (socket.TCP_KEEPCNT, _TRIES),
    ):
        peer.setsockopt(socket.IPPROTO_TCP, option, value)


def send(peer: socket.socket, message: Mapping[str, Any]) -> None:
    """Raises OSError."""
    peer.settimeout(STRANGER_SECONDS)
    peer.sendall(json.dumps(message).encode() + b"\n")


def message_in(text: bytes | bytearray) -> Message | None:
    """The message that a line holds; None for anything else."""
    with suppress(ValueError, RecursionError):
        message = json.loads(text)
        return message if isinstance(message, dict) else None
    return None


def line(peer: socket.socket, clock: Clock, waiting: str = "") -> Message | None:
    """The next message; None where the connection ended, and for anything else.

    `waiting` is said now and then. Raises TimeoutError when the clock is over before the line is
    complete.
    """
    # Byte by byte, so that what follows the line is left for the next call.
    text = bytearray()
    while len(text) < _MOST_BYTES:
        if clock.is_over():
            raise TimeoutError
        if waiting:
            clock.tell(waiting)
        peer.settimeout(clock.pause())
        try:
            byte = peer.recv(1)
        except TimeoutError:
            continue
        except OSError:
            return None
        if not byte or byte == b"\n":
            break
        text += byte
    return message_in(text)
