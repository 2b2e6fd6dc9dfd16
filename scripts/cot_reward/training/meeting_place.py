"""Where the nodes of a training meet: a port of node 0."""

import socket
from contextlib import suppress
from dataclasses import dataclass

from cot_reward.errors import UserError

_LAST_PORT = 2**16 - 1


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
        if not 0 < self.port <= _LAST_PORT:
            raise UserError(f"MASTER_PORT={self.port}: a port is a number from 1 to {_LAST_PORT}")
        try:
            # As looking the name up does it, later.
            self.address.encode("idna")
        except UnicodeError:
            raise UserError(
                f"MASTER_ADDR={self.address!r}: cannot be the name of a machine; give the name or "
                "the address of node 0 that the other nodes reach"
            ) from None

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def listener(place: Place) -> socket.socket:
    """A socket of node 0 that the others can connect to. Raises UserError."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", place.port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={place.port}: cannot be listened at on node 0: {error.strerror}; choose "
            "another port, the same on all nodes"
        ) from None


def not_here(place: Place) -> str:
    """A word where MASTER_ADDR is no address of this machine; "" where it is."""
    with suppress(OSError):
        found = socket.getaddrinfo(place.address, 0, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return ""
    return f" (MASTER_ADDR={place.address} is no address of this machine)"
