"""Nodes that meet before a training, over real sockets; each node is a thread."""

import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Event, Thread
from time import sleep

import pytest
from cot_reward.errors import UserError
from cot_reward.training import reception
from cot_reward.training.meeting import meet
from cot_reward.training.meeting_place import Place
from helpers.nodes import ADDRESS, free_port

FACTS = {"torch": "2.13.0"}


def refuses() -> str:
    raise UserError("runs/stage1 is trained already")


def meeting(
    *looks: Callable[[], dict[str, str]],
    decide: Callable[[], str] = lambda: "go",
    ranks: tuple[int, ...] | None = None,
    wait: float = 30.0,
    port: int | None = None,
) -> list[str]:
    """The verdict or the error of each node; the nodes look as they are told to."""
    port, ranks = port or free_port(), ranks or tuple(range(len(looks)))

    def node(rank: int, look: Callable[[], dict[str, str]]) -> str:
        try:
            return meet(Place(len(looks), rank, ADDRESS, port), look, decide, wait)
        except UserError as error:
            return f"error: {error}"

    with ThreadPoolExecutor() as threads:
        return list(threads.map(node, ranks, looks))


def alike() -> dict[str, str]:
    return FACTS


def without_a_file() -> dict[str, str]:
    raise UserError("a.png: no such file")


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_nodes_that_are_alike_get_the_verdict_of_node_0(nodes: int) -> None:
    assert meeting(*[alike] * nodes) == ["go"] * nodes
    refused = "error: runs/stage1 is trained already"
    assert meeting(*[alike] * nodes, decide=refuses) == [refused] * nodes


def test_every_node_hears_what_differs_and_what_is_missing() -> None:
    first, second = meeting(alike, lambda: {"torch": "2.12.0"})
    assert first == second
    host = socket.gethostname()
    assert f"torch: 2.13.0 on node 0 ({host}), 2.12.0 on node 1 ({host})" in first
    first, second = meeting(alike, without_a_file)
    assert first == second == f"error: on node 1 ({host}): a.png: no such file"
    assert meeting(without_a_file, without_a_file) == ["error: a.png: no such file"] * 2


def test_a_node_that_does_not_come_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"node 1 and node 2 did not come to {ADDRESS}:{port} in"):
        meet(Place(3, 0, ADDRESS, port), alike, lambda: "go", 0.1)
    told = f"node 0 at {ADDRESS}:{port}: waiting for node 1 and node 2\n"
    assert capsys.readouterr().err == told
    # Of the networks for documents: no machine has it.
    with pytest.raises(UserError, match=r"MASTER_ADDR=192\.0\.2\.1 is no address of this machine"):
        meet(Place(2, 0, "192.0.2.1", port), alike, lambda: "go", 0.1)


def test_a_node_that_meets_nobody_says_where_it_waited() -> None:
    port = free_port()
    with pytest.raises(UserError, match=rf"did not reach node 0 at {ADDRESS}:{port} in .* refused"):
        meet(Place(2, 1, ADDRESS, port), alike, lambda: "go", 0.1)


def test_a_port_that_is_taken_is_told_on_both_sides() -> None:
    ended = Event()
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]

        def answer() -> None:
            while not ended.is_set():
                peer, _ = taken.accept()
                with peer:
                    peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match=f"MASTER_PORT={port}: cannot be listened at"):
            meet(Place(2, 0, ADDRESS, port), alike, lambda: "go", 0.1)
        with pytest.raises(UserError, match="another program listens there"):
            meet(Place(2, 1, ADDRESS, port), alike, lambda: "go", 0.1)
        ended.set()
        socket.create_connection((ADDRESS, port)).close()
        thread.join()


@pytest.mark.parametrize(
    "said",
    [
        b"", b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 7}\n', b'{"rank": []}\n', b"[" * 3000 + b"\n",
        b"[" * 100_000, b'{"rank": 1}\n{"facts": {}}\n',
    ],
)  # fmt: skip
def test_strangers_on_the_port_change_nothing(said: bytes) -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(2, 0, ADDRESS, port), alike, lambda: "go", 30.0)
        with ExitStack() as stack:
            strangers = [stack.enter_context(connected(port)) for _ in range(4)]
            for stranger in strangers:
                stranger.sendall(said)
            strangers[0].close()
            # None of the others may hold the nodes up for long.
            second = threads.submit(meet, Place(2, 1, ADDRESS, port), alike, lambda: "go", 4.0)
            assert (first.result(), second.result()) == ("go", "go")


def connected(port: int) -> socket.socket:
    """A connection to node 0, which may not listen yet."""
    for _ in range(1000):
        try:
            return socket.create_connection((ADDRESS, port))
        except ConnectionRefusedError:
            sleep(0.01)
    raise AssertionError("nobody listens")


def told_to(peer: socket.socket) -> str:
    """The next line of node 0."""
    return peer.makefile().readline()


def come(port: int, rank: int) -> socket.socket:
    """A node that has said its rank, and no more."""
    peer = connected(port)
    assert "meeting" in told_to(peer)
    peer.sendall(b'{"rank": %d, "host": "h"}\n' % rank)
    return peer


def test_a_stranger_that_says_a_byte_now_and_then_is_sent_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "STRANGER_SECONDS", 0.2)
    port = free_port()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(2, 0, ADDRESS, port), alike, lambda: "go", 30.0)
        with connected(port) as stranger, suppress(ConnectionError):
            told_to(stranger)
            for _ in range(200):
                stranger.sendall(b"x")
                sleep(0.05)
            raise AssertionError("the stranger may stay")
        assert meet(Place(2, 1, ADDRESS, port), alike, lambda: "go", 30.0) == first.result() == "go"


def test_a_node_that_was_started_anew_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(3, 0, ADDRESS, port), alike, lambda: "go", 30.0)
        come(port, 1).close()
        others = [
            threads.submit(meet, Place(3, rank, ADDRESS, port), alike, lambda: "go", 30.0)
            for rank in (1, 2)
        ]
        assert [node.result() for node in (first, *others)] == ["go"] * 3
    assert "node 0: node 1 (h) has gone; it may come again" in capsys.readouterr().err


def test_a_node_that_ends_while_it_looks_is_told_of() -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(2, 0, ADDRESS, port), alike, lambda: "go", 30.0)
        with come(port, 1) as peer:
            assert "look" in told_to(peer)
        with pytest.raises(UserError, match=r"on node 1 \(h\): this node ended before the nodes"):
            first.result()


def test_node_0_may_look_longer_than_the_others_wait_for_it() -> None:
    port, met = free_port(), Event()

    def slow() -> dict[str, str]:
        assert met.wait(30)
        return FACTS

    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(2, 0, ADDRESS, port), slow, lambda: "go", 30.0)
        connected(port).close()
        second = threads.submit(meet, Place(2, 1, ADDRESS, port), alike, lambda: "go", 0.1)
        sleep(0.5)
        assert not second.done()
        met.set()
        assert (first.result(), second.result()) == ("go", "go")


def test_a_node_may_look_longer_than_node_0_waits_for_it() -> None:
    port, wait = free_port(), 2.0
    with ThreadPoolExecutor() as threads:
        first = threads.submit(meet, Place(2, 0, ADDRESS, port), alike, lambda: "go", wait)
        with come(port, 1) as peer:
            assert "look" in told_to(peer)
            sleep(1.1 * wait)
            peer.sendall(json.dumps({"facts": {"NNODES": "2"} | FACTS, "fault": ""}).encode())
            peer.sendall(b"\n")
            assert json.loads(told_to(peer)) == {"error": "", "verdict": "go"}
        assert first.result() == "go"


def test_two_nodes_of_one_rank_are_refused() -> None:
    first, *others = meeting(alike, alike, alike, ranks=(0, 1, 1), wait=2.0)
    assert "two nodes of one NODE_RANK" in first
    assert all(told.startswith("error: ") for told in others)


@pytest.mark.parametrize(("nodes", "rank"), [(2, 2), (2, -1), (0, 0)])
def test_ranks_begin_at_0(nodes: int, rank: int) -> None:
    with pytest.raises(UserError, match=f"NNODES={nodes} NODE_RANK={rank}: .* from 0 to N - 1"):
        Place(nodes, rank, ADDRESS, 29500)


@pytest.mark.parametrize(
    ("address", "port", "told"),
    [
        (ADDRESS, 99999, "MASTER_PORT=99999: a port is a number from 1 to 65535"),
        (ADDRESS, 0, "MASTER_PORT=0: a port"),
        (".bad", 29500, "MASTER_ADDR='.bad': cannot be the name of a machine"),
        ("a" * 70, 29500, "cannot be the name of a machine"),
        ("n\udcff", 29500, "cannot be the name of a machine"),
    ],
)
def test_what_is_no_address_is_refused(address: str, port: int, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        Place(2, 1, address, port)
