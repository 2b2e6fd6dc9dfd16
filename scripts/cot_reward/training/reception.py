"""Node 0 receives the other nodes of a training, whatever strangers do on its port meanwhile."""

import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from cot_reward.errors import UserError
from cot_reward.training.meeting_lines import (
    GREETING,
    STRANGER_SECONDS,
    Clock,
    keep_alive,
    message_in,
    send,
)
from cot_reward.training.meeting_place import Place, not_here

# A node says its rank and the name of its machine.
_MOST_BYTES = 2**12
# How often node 0 sees whether it has itself looked at its files.
_TURN = 0.05  # seconds


def node_name(rank: int, host: str) -> str:
    return f"node {rank} ({host})"


@dataclass(eq=False)
class _Visitor:
    """A connection. It is a stranger's (`rank` None) until it has said which node it is."""

    peer: socket.socket
    end: float
    text: bytearray = field(default_factory=bytearray)
    rank: int | None = None
    host: str = ""

    @property
    def name(self) -> str:
        return node_name(self.rank or 0, self.host)

    def read(self) -> bool:
        """Take what has come; whether the connection goes on."""
        try:
            found = self.peer.recv(_MOST_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.text += found
        # A node says no more until it is asked.
        return bool(found) and self.rank is None and len(self.text) <= _MOST_BYTES


class _Reception:
    """The visitors of node 0."""

    def __init__(self, place: Place, door: socket.socket, stack: ExitStack) -> None:
        self._place, self._door, self._stack = place, door, stack
        self._selector = stack.enter_context(selectors.DefaultSelector())
        door.setblocking(False)
        self._selector.register(door, selectors.EVENT_READ)
        self._strangers: list[_Visitor] = []
        self.found: dict[int, _Visitor] = {}

    def missing(self) -> list[int]:
        return sorted(set(range(1, self._place.nodes)) - self.found.keys())

    def attend(self, seconds: float) -> bool:
        """Hear who is there, for so long at most; whether a node that was there has gone.

        Raises UserError for two nodes of one rank.
        """
        gone = False
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._door:
                self._let_in()
                continue
            visitor: _Visitor = key.data
            # It may have left in this turn, when its node came again.
            if visitor.peer.fileno() < 0:
                continue
            if not visitor.read():
                gone |= self._leave(visitor)
            elif b"\n" in visitor.text:
                self._meet(visitor)
        now = time.monotonic()
        for visitor in [one for one in self._strangers if one.end < now]:
            self._leave(visitor)
        return gone

    def _let_in(self) -> None:
        with suppress(OSError):
            peer = self._stack.enter_context(self._door.accept()[0])
            keep_alive(peer)
            send(peer, GREETING)
            peer.setblocking(False)
            visitor = _Visitor(peer, time.monotonic() + STRANGER_SECONDS)
            self._selector.register(peer, selectors.EVENT_READ, visitor)
            self._strangers.append(visitor)

    def _meet(self, visitor: _Visitor) -> None:
        """Take a stranger that has said a line for the node that it says it is."""
        said, _, more = visitor.text.partition(b"\n")
        hello = message_in(said) or {}
        rank, visitor.host = hello.get("rank"), str(hello.get("host"))
        if type(rank) is not int or more:
            self._leave(visitor)
            return
        if not 0 < rank < self._place.nodes:
            _say(f"{visitor.host!r} came with NODE_RANK={rank}, NNODES is {self._place.nodes}")
            self._leave(visitor)
            return
        if (other := self.found.get(rank)) and not other.read():
            # The end of a node that was started anew may be heard after its second beginning.
            self._leave(other)
        visitor.rank = rank
        if other := self.found.get(rank):
            raise UserError(f"{visitor.name} and {other.name}: two nodes of one NODE_RANK")
        self._strangers.remove(visitor)
        self.found[rank] = visitor

    def _leave(self, visitor: _Visitor) -> bool:
        """Close a connection; whether it was a node's."""
        self._selector.unregister(visitor.peer)
        visitor.peer.close()
        if visitor.rank is None:
            self._strangers.remove(visitor)
            return False
        del self.found[visitor.rank]
        _say(f"{visitor.name} has gone; it may come again")
        return True


def _say(message: str) -> None:
    print(f"node 0: {message}", file=sys.stderr, flush=True)


def receive(
    place: Place, door: socket.socket, wait: float, ready: Callable[[], bool], stack: ExitStack
) -> dict[str, socket.socket]:
    """All other nodes by name, in the order of their ranks, once node 0 itself is `ready`.

    `door` is the listening socket; `stack` closes the connections. A node that goes may come again.
    Raises UserError when a node does not come in `wait` seconds, and for two nodes of one rank.
    """
    reception, clock = _Reception(place, door, stack), Clock(wait)
    while (missing := reception.missing()) or not ready():
        if missing:
            told = f"node {' and node '.join(map(str, missing))}"
            if clock.is_over():
                raise UserError(
                    f"{told} did not come to {place} in {wait:.0f} seconds. Start the same command "
                    f"there, with its NODE_RANK and MASTER_ADDR={place.address}; let all ports "
                    f"between the nodes through their firewalls{not_here(place)}"
                )
            clock.tell(f"node 0 at {place}: waiting for {told}{not_here(place)}")
        if reception.attend(clock.pause() if missing else _TURN):
            clock = Clock(wait)
    return {visitor.name: visitor.peer for _, visitor in sorted(reception.found.items())}
