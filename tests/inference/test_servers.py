"""Inference on several servers: the rows of one, whatever comes and goes."""

import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cot_reward.client import roster
from cot_reward.client.roster import LOOK_SECONDS
from cot_reward.errors import UserError
from helpers.client_world import World
from helpers.rows import read_lines
from helpers.server import MockServer

FILES = ("correct", "incorrect", "unusable", "failed")
FLAGS = ["--num-samples", 2, "--concurrency", 4, "--max-attempts", 2]


@pytest.fixture
def servers() -> Iterator[list[MockServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(MockServer()) for _ in range(3)]


def contents(world: World) -> dict[str, bytes]:
    return {name: (world.out / f"{name}.jsonl").read_bytes() for name in FILES}


def asked(server: MockServer) -> list[str]:
    """The captions of its requests; the probes of an outage ask for a single token."""
    return [entry["caption"] for entry in server.log() if entry["max_tokens"] > 1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run on one server, of the comparisons of `world`."""
    with MockServer() as server:
        world = World(tmp_path_factory.mktemp("plain"), server, count=30)
        assert world.call(*FLAGS) == 0
        return contents(world)


@pytest.fixture
def world(tmp_path: Path, servers: list[MockServer]) -> World:
    made = World(tmp_path / "several", servers[0], count=30)
    for server in servers:
        server.configure(latency=0.05)
    return made


def urls(servers: list[MockServer]) -> list[str]:
    return ["--base-url", *(server.url for server in servers)]


def test_several_servers_give_the_rows_of_one(world, servers, plain):
    first, *others = servers
    # The flag several times, and once with several values.
    assert world.call(*FLAGS, "--base-url", first.url, *urls(others)) == 0
    assert contents(world) == plain
    seen = [asked(server) for server in servers]
    assert sum(map(len, seen)) == 60
    assert all(len(captions) >= 10 for captions in seen)
    by_server = world.summary["servers"]
    assert {url: found["requests"] for url, found in by_server.items()} == {
        server.url: len(captions) for server, captions in zip(servers, seen, strict=True)
    }
    assert world.summary["concurrency"] == {"mode": "fixed", "limit": 12}


def test_all_rounds_about_a_comparison_go_to_one_server(world, servers):
    flags = ["--until", "right,wrong", "--first", 1, "--num-samples", 4]
    assert world.call(*flags, *urls(servers)) == 0
    places = defaultdict(set)
    for number, server in enumerate(servers):
        for caption in asked(server):
            places[caption].add(number)
    assert len(places) == 30
    assert all(len(numbers) == 1 for numbers in places.values())
    assert {number for numbers in places.values() for number in numbers} == {0, 1, 2}


def test_a_server_that_dies_changes_nothing_but_the_speed(world, servers, plain):
    running = world.start(*FLAGS, *urls(servers))
    servers[1].wait_for(4)
    servers[1].stop()
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert contents(world) == plain
    assert world.summary["account"] == {
        "expected": 120, "judged": 120, "failed": 0, "not_asked": 0,
    }  # fmt: skip
    # The other two were open all the time.
    assert world.summary["paused_seconds"] == 0
    assert f"{servers[1].url}: the server is out" in output


def test_a_server_that_only_fails_is_left_for_the_others(world, servers, plain):
    """Its probes pass, so that it is not out; each request has two attempts."""
    servers[2].configure(faults=[
        {"kind": "status", "status": 500, "caption": f"caption {number}"} for number in range(30)
    ])  # fmt: skip
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert contents(world) == plain


@pytest.mark.parametrize(
    "fault",
    [{"status": 400}, {"status": 403}, {"status": 404}, {"status": 429, "retry_after": "5000"}],
)
def test_what_one_server_refuses_or_turns_away_the_others_answer(world, servers, plain, fault):
    """Its refusals come at once, so that it looks like the fastest."""
    servers[2].configure(faults=[
        {"kind": "status", "caption": f"caption {number}"} | fault for number in range(30)
    ])  # fmt: skip
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert contents(world) == plain
    # It rests after a few.
    assert len(asked(servers[2])) < 30


def test_what_every_server_refuses_is_refused(world, servers):
    refused = {"kind": "status", "status": 400, "caption": "caption 3"}
    for server in servers:
        server.configure(latency=0.05, faults=[refused])
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert world.summary["failed_reasons"] == {"refused": 4}
    assert world.summary["account"]["judged"] == 116
    assert sum(asked(server).count("caption 3") for server in servers) == 6


def test_a_server_that_hangs_is_left_for_the_others(world, servers, plain):
    servers[2].configure(faults=[{"kind": "hang"}])
    assert world.call(*FLAGS, "--timeout", 1, *urls(servers)) == 0
    assert contents(world) == plain
    servers[2].configure()


def test_a_server_that_is_full_is_relieved_by_the_others(world, servers, plain):
    servers[2].configure(latency=0.05, max_requests=1)
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert contents(world) == plain


def test_a_request_that_takes_servers_down_leaves_some_and_is_told_of(tmp_path):
    """It is tried on three servers at most; the others answer everything else."""
    with ExitStack() as stack:
        servers = [stack.enter_context(MockServer()) for _ in range(5)]
        world = World(tmp_path, servers[0], count=30)
        for server in servers:
            server.configure(latency=0.05, faults=[{"kind": "exit", "caption": "caption 3"}])
        done = world.run(*FLAGS, "--orders", "given", "--max-pause", 2, *urls(servers))
        assert done.returncode == 0, done.stderr
        assert sum(server.ended for server in servers) == 3
    (failed,) = world.read("failed")
    assert failed["id"] == world.key(3)
    assert "went out 3 times while it had this request" in failed["detail"]
    assert world.summary["account"]["judged"] == 58


@pytest.mark.slow
def test_servers_join_and_leave_by_the_file(world, servers, plain, tmp_path):
    file = tmp_path / "servers.txt"
    file.write_text(f"{servers[0].url}\n")
    servers[0].configure(latency=1)
    running = world.start(*FLAGS, "--servers", file)
    servers[0].wait_for(4)
    file.write_text(f"{servers[1].url}  # instead\nhttp://me:secret@host\n")
    time.sleep(2 * LOOK_SECONDS)
    # A line that is written just now.
    file.write_text(f"{servers[1].url}\nhttp://127.0.0.1:80a")
    time.sleep(2 * LOOK_SECONDS)
    file.write_text(f"{servers[1].url}\n")
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert contents(world) == plain
    assert asked(servers[1])
    assert f"{servers[1].url}: joined" in output
    assert f"{servers[0].url}: left" in output
    assert "servers.txt:2: the address of a server must not hold a name" in output
    assert "servers.txt:2: 'http://127.0.0.1:80a' is no address of a server" in output
    assert "secret" not in output


def test_a_server_that_is_not_up_yet_joins_when_it_is(world, servers, plain):
    with MockServer() as coming:
        port, url = coming.port, coming.url
    servers[0].configure(latency=0.5)
    running = world.start(*FLAGS, "--base-url", servers[0].url, url)
    servers[0].wait_for(4)
    with MockServer(port=port) as coming:
        coming.wait_for(4)
        output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert f"{url}: no answer from the server" in output
    assert "it joins when it answers" in output
    assert f"{url}: joined" in output
    assert contents(world) == plain


def test_a_server_that_hangs_at_the_start_holds_nobody_up(
    world, servers, plain, capsys, monkeypatch
):
    monkeypatch.setattr(roster, "START_GRACE_SECONDS", 0.5)
    servers[1].freeze()
    assert world.call(*FLAGS, *urls(servers[:2])) == 0
    assert contents(world) == plain
    told = capsys.readouterr().err
    assert f"{servers[1].url} has not answered yet; it joins when it answers" in told


def test_a_server_with_other_weights_is_refused(world, servers):
    servers[2].configure(probe={"logprob": -2.5})
    with pytest.raises(UserError, match="other weights under the name mock"):
        world.call(*FLAGS, *urls(servers))
    servers[2].configure(models=["other"])
    with pytest.raises(UserError, match=f"{servers[2].url} has no model 'mock'"):
        world.call(*FLAGS, *urls(servers), "--model", "mock")
    with pytest.raises(UserError, match="several models: mock, other; choose by --model"):
        world.call(*FLAGS, *urls(servers))
    assert not any(asked(server) for server in servers)


def test_where_the_servers_read_files_other_weights_are_refused_as_well(world, servers):
    """Their answers come side by side, and so do the questions about files."""
    servers[1].configure(probe={"logprob": -2.5})
    flags = ["--media", "file", "--media-root", world.media.resolve()]
    with pytest.raises(UserError, match="other weights under the name mock"):
        world.call(*FLAGS, *flags, *urls(servers[:2]))


def test_a_server_that_does_not_tell_its_weights_now_is_not_asked_yet(
    world, servers, plain, capsys
):
    servers[2].configure(probe={"status": 503, "logprob": -2.5})
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert asked(servers[2]) == []
    assert contents(world) == plain
    assert "did not answer the first question (HTTP 503" in capsys.readouterr().err


def test_a_server_of_other_seeds_is_refused(world, servers):
    """Its texts are those of other seeds: the rows would not be those of one server."""
    servers[1].configure(probe={"refuses": ["large seeds"]})
    with pytest.raises(UserError, match="seeds of more than 31 bits"):
        world.call(*FLAGS, *urls(servers[:2]))
    servers[0].configure(probe={"refuses": ["large seeds"]})
    assert world.call(*FLAGS, *urls(servers[:2])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", [{}, {"status": 503}])
def test_a_server_that_comes_back_with_other_weights_is_not_asked(world, servers, plain, first):
    running = world.start(*FLAGS, *urls(servers[:2]))
    servers[1].wait_for(4)
    servers[0].configure(latency=0.5)
    other = {"logprob": -2.5} | first
    servers[1].configure(
        models_status=503, faults=[{"kind": "status", "status": 500}], probe=other
    )  # fmt: skip
    time.sleep(2)
    servers[1].configure(probe=other)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert asked(servers[1]) == []
    assert f"{servers[1].url}: the server is out" in output
    assert ("other weights under the name mock" in output) == (not first)
    assert contents(world) == plain


@pytest.mark.parametrize("kind", ["cut", "close"])
def test_other_weights_behind_a_connection_that_broke_are_found(world, servers, kind):
    """The address answers all the time: no pause begins."""
    servers[0].configure(latency=0.2)
    running = world.start(*FLAGS, *urls(servers[:1]))
    servers[0].wait_for(8)
    servers[0].configure(
        latency=0.2, faults=[{"kind": kind, "times": 4}], probe={"logprob": -2.5}
    )  # fmt: skip
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 1, output
    assert "other weights under the name mock" in output
    assert "pausing" not in output
    assert len(asked(servers[0])) < 40


def test_when_all_servers_stay_out_the_run_ends_and_goes_on_later(world, servers, plain):
    running = world.start(*FLAGS, "--max-pause", 1, *urls(servers[:2]))
    servers[1].wait_for(4)
    for server in servers[:2]:
        server.stop()
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 1, output
    assert "the server was out for more than 1 s" in output
    assert world.read("failed") == []
    assert world.call(*FLAGS, "--base-url", servers[2].url) == 0
    assert contents(world) == plain


def test_a_file_without_a_server_is_named(world, tmp_path):
    file = tmp_path / "servers.txt"
    with pytest.raises(UserError, match=r"servers.txt: cannot be read"):
        world.call("--servers", file)
    file.write_text("# none yet\n")
    with pytest.raises(UserError, match=r"servers.txt: names no server; write one address a line"):
        world.call("--servers", file)


# --- several processes ----------------------------------------------------------------------------


def test_several_processes_give_the_rows_of_one(world, servers, plain):
    # Nothing listens at the last address.
    done = world.run(*FLAGS, "--processes", 2, *urls(servers), "http://127.0.0.1:9/v1")
    assert done.returncode == 0, done.stderr
    assert contents(world) == plain
    assert sum(found["requests"] for found in world.summary["servers"].values()) == 60
    assert world.summary["concurrency"] == {"mode": "fixed", "limit": 12}
    # All processes see the same servers, and one tells of them.
    assert done.stderr.count("joined") == 0
    assert done.stderr.count("it joins when it answers") == 1


def children(process_id: int) -> list[int]:
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(number) for number in path.read_text().split()]


def sending_processes(process_id: int) -> list[int]:
    return [number for number in children(process_id) if b"spawn_main" in cmdline(number)]


def wait_until_gone(process_ids: list[int]) -> None:
    until = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in process_ids):
        assert time.monotonic() < until, "processes were left behind"
        time.sleep(0.05)


@pytest.mark.slow
def test_servers_that_come_and_go_are_told_of_once(world, servers, plain, tmp_path):
    file = tmp_path / "servers.txt"
    file.write_text(f"{servers[0].url}\n")
    servers[0].configure(latency=1)
    running = world.start(*FLAGS, "--servers", file, "--processes", 2)
    servers[0].wait_for(4)
    file.write_text(f"{servers[1].url}\n")
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert contents(world) == plain
    assert (output.count(": joined"), output.count(": left")) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_that_still_join_end_with_the_run(world, servers, number):
    running = world.start(*FLAGS, "--processes", 2, *urls(servers[:1]))
    until = time.monotonic() + 60
    while len(senders := sending_processes(running.pid)) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    # They load their modules: from here on the server answers none of them.
    servers[0].freeze()
    time.sleep(3)
    running.send_signal(number)
    output, _ = running.communicate(timeout=120)
    wait_until_gone(senders)
    if number == signal.SIGINT:
        assert running.returncode == 130, output
        assert "stopped early; the same command continues" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "main", "interrupt"])
def test_a_killed_process_loses_nothing_that_was_answered(world, servers, plain, victim):
    import os

    for server in servers:
        server.configure(latency=0.3)
    running = world.start(*FLAGS, "--processes", 2, *urls(servers))
    servers[0].wait_for(6)
    senders = sending_processes(running.pid)
    assert len(senders) == 2
    if victim == "child":
        os.kill(senders[0], signal.SIGKILL)
    else:
        running.send_signal(signal.SIGKILL if victim == "main" else signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    wait_until_gone(senders)
    assert "BrokenPipeError" not in output
    if victim == "child":
        assert "a process of --processes ended by itself" in output
        assert running.returncode == 2
    if victim == "interrupt":
        assert "stopped early; the same command continues" in output
        assert running.returncode == 130
    kept = len(read_lines(world.out / "journal.jsonl"))
    assert 0 < kept < 120
    before = sum(len(asked(server)) for server in servers)
    assert world.call(*FLAGS, *urls(servers)) == 0
    assert contents(world) == plain
    # What was in flight when a process died is asked again, and nothing else.
    again = sum(len(asked(server)) for server in servers) - before
    assert again == (120 - kept) // 2


def cmdline(process_id: int) -> bytes:
    return Path(f"/proc/{process_id}/cmdline").read_bytes()


@pytest.mark.slow
def test_a_single_server_that_comes_back_with_other_weights_ends_the_run(world, servers):
    other = {"logprob": -2.5}
    running = world.start(*FLAGS, *urls(servers[:1]))
    servers[0].wait_for(8)
    servers[0].configure(
        models_status=503, faults=[{"kind": "status", "status": 500}], probe=other
    )  # fmt: skip
    time.sleep(2)
    servers[0].configure(probe=other)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 1, output
    assert "other weights under the name mock" in output
    assert "everything before is kept" in output
    assert asked(servers[0]) == []
