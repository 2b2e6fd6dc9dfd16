"""The nodes of a training meet before it starts: what is on each of them, and one verdict for all.

torchrun waits a quarter of an hour, without a word, for a node that does not come. Here node 0
listens where the training will, and every node says whom it waits for. Messages are lines of JSON:
node 0 greets, a node tells its rank, then what is on it, and node 0 answers.
"""

import json
import math
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from cot_reward.errors import UserError
from cot_reward.training.machines import check_alike, check_faults

_GREETING = {"meeting": "cot-reward 1"}
_TOLD_EVERY = 30.0  # seconds
# A stranger on the port must neither fill the memory nor hold up the others.
_STRANGER_SECONDS = 5.0
_MOST_BYTES = 2**20

Message = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The node `rank` among `nodes`; node 0 listens at `address` and `port`. Raises UserError."""

    nodes: int
    rank: int
    address: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.nodes:
            raise UserError(
                f"NNODES={self.nodes} NODE_RANK={self.rank}: of N nodes each has another rank, "
                "from 0 to N - 1"
            )

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def meet(
    place: Place, look: Callable[[], Mapping[str, str]], decide: Callable[[], str], wait: float
) -> str:
    """The verdict, on every node.

    `look` tells what must be the same everywhere, or raises UserError; node 0 calls it before the
    others do. `decide` is called on node 0 where all are alike, and gives the verdict or raises
    UserError. Every node then raises the same error. `wait`: seconds until a node that meets nobody
    raises UserError.
    """
    if place.rank:
        return _visit(place, look, wait)
    seen = {_name(0, socket.gethostname()): _seen(place, look)}
    answer = {"error": "", "verdict": ""}
    with ExitStack() as stack:
        visitors = _receive(place, wait, stack)
        for name, visitor in visitors.items():
            gone = {"facts": {}, "fault": "this node ended before the nodes had met"}
            told = _line(visitor, wait) or {}
            seen[name] = told if told.keys() == gone.keys() else gone
        try:
            check_faults({name: one["fault"] for name, one in seen.items()})
            check_alike({name: one["facts"] for name, one in seen.items()})
            answer["verdict"] = decide()
        except UserError as error:
            answer["error"] = str(error)
        for visitor in visitors.values():
            with suppress(OSError):
                _send(visitor, answer)
                # The visitor closes first, which leaves the port free for the training.
                visitor.recv(1)
    return _verdict(answer)


def _visit(place: Place, look: Callable[[], Mapping[str, str]], wait: float) -> str:
    """The part of the other nodes."""
    with _connected(place, wait) as node_0:
        _send(node_0, _seen(place, look))
        # Node 0 may wait for a third node as long as this one for node 0.
        answer = _line(node_0, 2 * wait)
    if answer is None:
        raise UserError(f"node 0 at {place} ended before the nodes had met; its own log says why")
    return _verdict(answer)


def _seen(place: Place, look: Callable[[], Mapping[str, str]]) -> Message:
    try:
        return {"facts": {"NNODES": str(place.nodes), **look()}, "fault": ""}
    except UserError as error:
        return {"facts": {}, "fault": str(error)}


def _receive(place: Place, wait: float, stack: ExitStack) -> dict[str, socket.socket]:
    """All other nodes by name, in the order of their ranks. `stack` closes their connections."""
    listener = stack.enter_context(_listener(place))
    found: dict[int, tuple[str, socket.socket]] = {}
    clock = _Clock(wait)
    while len(found) < place.nodes - 1:
        missing = sorted(set(range(1, place.nodes)) - found.keys())
        told = f"node {' and node '.join(map(str, missing))}"
        if clock.is_over():
            raise UserError(
                f"{told} did not come to {place} in {wait:.0f} seconds. Start the same command "
                f"there, with its NODE_RANK and MASTER_ADDR={place.address}; let all ports between "
                f"the nodes through their firewalls{_not_here(place)}"
            )
        clock.tell(f"node 0 at {place}: waiting for {told}{_not_here(place)}")
        listener.settimeout(clock.pause())
        with suppress(OSError):
            visitor = stack.enter_context(listener.accept()[0])
            _send(visitor, _GREETING)
            hello = _line(visitor, _STRANGER_SECONDS) or {}
            rank, host = hello.get("rank"), str(hello.get("host"))
            if type(rank) is not int:
                continue
            if rank in found:
                raise UserError(
                    f"{_name(rank, host)} and {found[rank][0]}: two nodes of one NODE_RANK"
                )
            if rank in missing:
                found[rank] = _name(rank, host), visitor
    return dict(found[rank] for rank in sorted(found))


def _connected(place: Place, wait: float) -> socket.socket:
    """The connection to node 0, after the greetings."""
    clock = _Clock(wait)
    while True:
        try:
            node_0 = socket.create_connection((place.address, place.port), _STRANGER_SECONDS)
            if _line(node_0, _STRANGER_SECONDS) == _GREETING:
                _send(node_0, {"rank": place.rank, "host": socket.gethostname()})
                return node_0
            node_0.close()
            why = "another program listens there"
        except OSError as error:
            why = error.strerror or str(error)
        if clock.is_over():
            raise UserError(
                f"node {place.rank} ({socket.gethostname()}) did not reach node 0 at {place} in "
                f"{wait:.0f} seconds: {why}. Is node 0 started, is MASTER_ADDR one of its "
                "addresses in this network, and does its firewall let the port through?"
            )
        clock.tell(f"node {place.rank}: waiting for node 0 at {place}: {why}")
        time.sleep(clock.pause())


class _Clock:
    """How long a node still waits, and when it says so again."""

    def __init__(self, wait: float) -> None:
        self._end, self._told = time.monotonic() + wait, -math.inf

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def pause(self) -> float:
        return max(0.01, min(1.0, self._end - time.monotonic()))

    def tell(self, message: str) -> None:
        if time.monotonic() - self._told >= _TOLD_EVERY:
            self._told = time.monotonic()
            print(message, file=sys.stderr, flush=True)


def _listener(place: Place) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", place.port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={place.port}: cannot be listened at on node 0: {error.strerror}; choose "
            "another port, the same on all nodes"
        ) from None


def _not_here(place: Place) -> str:
    """A word where MASTER_ADDR is no address of this machine; "" where it is."""
    with suppress(OSError):
        found = socket.getaddrinfo(place.address, 0, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return ""
    return f" (MASTER_ADDR={place.address} is no address of this machine)"


def _name(rank: int, host: str) -> str:
    return f"node {rank} ({host})"


def _send(peer: socket.socket, message: Mapping[str, Any]) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _line(peer: socket.socket, seconds: float) -> Message | None:
    """The next message; None where none comes in time, or anything else."""
    peer.settimeout(seconds)
    # Byte by byte, so that what follows the line is left for the next call.
    text = bytearray()
    with suppress(OSError, ValueError):
        while (byte := peer.recv(1)) and byte != b"\n" and len(text) < _MOST_BYTES:
            text += byte
        message = json.loads(text)
        return message if isinstance(message, dict) else None
    return None


def _verdict(answer: Message) -> str:
    if answer.get("error"):
        raise UserError(str(answer["error"]))
    return str(answer.get("verdict", ""))
