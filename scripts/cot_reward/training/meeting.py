"""The nodes of a training meet before it starts: what is on each of them, and one verdict for all.

torchrun waits a quarter of an hour, without a word, for a node that does not come. Here node 0
listens where the training will, and every node says whom it waits for. Messages are lines of JSON:
node 0 greets, a node tells its rank, node 0 asks it to look, it tells what is there, and node 0
answers.
"""

import math
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from threading import Thread

from cot_reward.errors import UserError
from cot_reward.training.machines import check_alike, check_faults
from cot_reward.training.meeting_lines import (
    GREETING,
    STRANGER_SECONDS,
    Clock,
    Message,
    keep_alive,
    line,
    send,
)
from cot_reward.training.meeting_place import Place, listener
from cot_reward.training.reception import node_name, receive

_LOOK = {"look": True}


def meet(
    place: Place, look: Callable[[], Mapping[str, str]], decide: Callable[[], str], wait: float
) -> str:
    """The verdict, on every node.

    `look` tells what must be the same everywhere, or raises UserError; node 0 has called it before
    the others do. `decide` is called on node 0 where all are alike, and gives the verdict or raises
    UserError. Every node then raises the same error. `wait`: seconds until a node that meets nobody
    raises UserError; for a node that was met and looks the others wait as long as it is there.
    """
    if place.rank:
        return _visit(place, look, wait)
    answer = {"error": "", "verdict": ""}
    with ExitStack() as stack:
        # Who comes is heard while node 0 looks, which may take minutes.
        door = stack.enter_context(listener(place))
        own = _in_background(lambda: _seen(place, look))
        visitors = receive(place, door, wait, own.done, stack)
        seen = {node_name(0, socket.gethostname()): own.result()}
        for visitor in visitors.values():
            with suppress(OSError):
                send(visitor, _LOOK)
        for name, visitor in visitors.items():
            clock = Clock(math.inf, patient=True)
            told = line(visitor, clock, f"node 0: {name} still looks at its files") or {}
            is_whole = isinstance(told.get("facts"), dict) and isinstance(told.get("fault"), str)
            gone = {"facts": {}, "fault": "this node ended before the nodes had met"}
            seen[name] = told if is_whole else gone
        try:
            check_faults({name: one["fault"] for name, one in seen.items()})
            check_alike({name: one["facts"] for name, one in seen.items()})
            answer["verdict"] = decide()
        except UserError as error:
            answer["error"] = str(error)
        for visitor in visitors.values():
            with suppress(OSError):
                send(visitor, answer)
                # The visitor closes first, which leaves the port free for the training.
                visitor.recv(1)
    return _verdict(answer)


def _visit(place: Place, look: Callable[[], Mapping[str, str]], wait: float) -> str:
    """The part of the other nodes."""
    waiting = f"node {place.rank}: waiting for node 0 at {place}, which waits for all nodes to look"
    answer = None
    with _connected(place, wait) as node_0, suppress(OSError):
        if line(node_0, Clock(math.inf, patient=True), waiting) == _LOOK:
            send(node_0, _seen(place, look))
            answer = line(node_0, Clock(math.inf, patient=True), waiting)
    if answer is None:
        raise UserError(f"node 0 at {place} ended before the nodes had met; its own log says why")
    return _verdict(answer)


def _in_background(call: Callable[[], Message]) -> "Future[Message]":
    """The call's result or error, when it is there. The call does not keep the program running."""
    future: Future[Message] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _seen(place: Place, look: Callable[[], Mapping[str, str]]) -> Message:
    try:
        return {"facts": {"NNODES": str(place.nodes), **look()}, "fault": ""}
    except UserError as error:
        return {"facts": {}, "fault": str(error)}


def _connected(place: Place, wait: float) -> socket.socket:
    """The connection to node 0, after the greetings."""
    clock = Clock(wait)
    while True:
        try:
            node_0 = socket.create_connection((place.address, place.port), STRANGER_SECONDS)
            if _greets(node_0):
                keep_alive(node_0)
                send(node_0, {"rank": place.rank, "host": socket.gethostname()})
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


def _greets(peer: socket.socket) -> bool:
    with suppress(TimeoutError):
        return line(peer, Clock(STRANGER_SECONDS)) == GREETING
    return False


def _verdict(answer: Message) -> str:
    if answer.get("error"):
        raise UserError(str(answer["error"]))
    return str(answer.get("verdict", ""))
