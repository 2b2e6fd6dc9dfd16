"""Stage 2's client when the server fails or the run is stopped: nothing is lost or doubled."""

import json
import random
import signal
import time
from collections import Counter

import pytest
from cot_reward.inference import request_seed
from cot_reward.records import ORDERS
from cot_reward.settings import UserError
from cot_reward.store import Journal
from world import World, unit

# --- faults of the server -------------------------------------------------------------------------


def test_passing_faults_are_retried_and_lasting_ones_are_listed(tmp_path, server):
    world = World(tmp_path, server, count=12)
    once = [
        {"kind": "status", "status": 429, "retry_after": "1"},
        {"kind": "status", "status": 500},
        {"kind": "cut"},
        {"kind": "close"},
        {"kind": "wrong_n"},
        {"kind": "same_index"},
        {"kind": "body", "body": "<html>busy</html>", "type": "text/html"},
        {"kind": "body", "body": "null"},
    ]
    always = [
        {"kind": "status", "status": 400, "message": "the prompt is too long"},
        {"kind": "status", "status": 503},
        {"kind": "body", "body": '{"choices": [{"index": 0, "message": null}]}'},
    ]
    faults = [fault | {"times": 1} for fault in once] + always
    server.tell(
        faults=[fault | {"caption": f"caption {number}"} for number, fault in enumerate(faults)]
        # Half a character, as a tokenizer can cut it.
        + [{"caption": "caption 11", "kind": "text", "text": "\ud83d half"}]
    )
    flags = ["--num-samples", 2, "--orders", "given", "--max-attempts", 3]
    done = world.run(*flags)
    assert done.returncode == 0, done.stderr
    asked = Counter(entry["caption"] for entry in server.log())
    assert [asked[f"caption {number}"] for number in range(12)] == [2] * 8 + [1, 3, 3, 1]
    first, second = (e["when"] for e in server.log() if e["caption"] == "caption 0")
    assert second - first >= 1
    failed = {entry["id"]: entry for entry in world.read("failed")}
    refused, used_up, malformed = (failed.pop(world.key(number)) for number in (8, 9, 10))
    assert failed == {}
    assert refused["reason"] == "refused"
    assert "HTTP 400" in refused["detail"]
    assert "the prompt is too long" in refused["detail"]
    assert used_up["reason"] == malformed["reason"] == "attempts_used_up"
    assert "HTTP 503" in used_up["detail"]
    assert world.summary["account"] == {"expected": 24, "judged": 18, "failed": 6, "not_asked": 0}
    assert world.summary["retries"] == 8 + 2 * 2
    halves = [row for row in world.judged if row["id"] == world.key(11)]
    assert {row["conversations"][1]["value"] for row in halves} == {"? half"}
    # What failed is asked again by the same command, and nothing else.
    server.tell()
    assert world.call(*flags) == 0
    assert {entry["caption"] for entry in server.log()} == {f"caption {n}" for n in (8, 9, 10)}
    assert world.summary["account"] == {"expected": 24, "judged": 24, "failed": 0, "not_asked": 0}


def test_a_run_in_which_nothing_succeeds_is_an_error(world, server):
    server.tell(faults=[{"kind": "status", "status": 400}])
    done = world.run("--num-samples", 1)
    assert done.returncode == 1
    assert "nothing succeeded" in done.stderr
    assert world.summary["account"]["failed"] == 6


# --- stopped runs ---------------------------------------------------------------------------------


def journaled(world: World) -> list[tuple[str, str, int]]:
    """The whole entries on disk; a torn last line counts for nothing."""
    path = world.out / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [unit(json.loads(line)) for line in lines if line.endswith(b"\n")]


def units_of(world: World, entry: dict, seeds: dict[int, tuple[str, str]]) -> set:
    """The units that a request asked for: its seed tells the order and the first sample."""
    first = next(s for s in range(entry["seed"], entry["seed"] - 10, -1) if s in seeds)
    start = entry["seed"] - first
    return {(*seeds[first], start + index) for index in range(entry["n"])}


def test_kill_9_and_the_same_command_continues(tmp_path, server):
    world = World(tmp_path, server, count=10)
    seeds = {
        request_seed(0, world.key(n), order): (world.key(n), order)
        for n in range(10) for order in ORDERS
    }  # fmt: skip
    flags = ["--num-samples", 2, "--concurrency", 2]
    draw = random.Random(1)
    for _ in range(4):
        before = set(journaled(world))
        server.tell(latency=0.1)
        running = world.start(*flags)
        server.wait_for(1)
        time.sleep(draw.uniform(0.02, 0.2))
        running.kill()
        running.communicate()
        assert not (world.out / "summary.json").exists()
        asked = [units_of(world, entry, seeds) for entry in server.log()]
        assert not before & set().union(*asked)
        assert before <= set(journaled(world))
    before = set(journaled(world))
    assert before
    server.tell()
    assert world.call(*flags) == 0
    asked = [u for entry in server.log() for u in units_of(world, entry, seeds)]
    everything = {(*where, index) for where in seeds.values() for index in range(2)}
    assert Counter(asked) == Counter(everything - before)
    assert Counter(journaled(world)) == Counter(map(unit, world.judged)) == Counter(everything)
    assert world.summary["account"]["judged"] == 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_in_flight_and_exits_130(tmp_path, server, number):
    world = World(tmp_path, server, count=20)
    server.tell(latency=0.4)
    flags = ["--num-samples", 1, "--concurrency", 4]
    running = world.start(*flags)
    server.wait_for(5)
    running.send_signal(number)
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 130, output
    assert "the same command continues" in output
    assert "Traceback" not in output
    asked = len(server.log())
    assert asked < 40
    # What was in flight was waited for and kept.
    assert len(journaled(world)) == len(world.judged) == asked
    assert not (world.out / "summary.json").exists()
    server.tell()
    assert world.call(*flags) == 0
    assert len(server.log()) == 40 - asked
    assert world.summary["account"] == {"expected": 40, "judged": 40, "failed": 0, "not_asked": 0}


def test_a_second_ctrl_c_ends_at_once(world, server):
    server.tell(latency=20)
    running = world.start("--num-samples", 1)
    server.wait_for(6)
    started = time.monotonic()
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert time.monotonic() - started < 10
    assert "Traceback" not in output


def test_a_second_run_in_the_same_folder_is_refused(world, server):
    with (
        Journal(world.out / "journal.jsonl"),
        pytest.raises(UserError, match="another run is writing"),
    ):
        world.call("--num-samples", 1)
    assert server.log() == []
    assert world.call("--num-samples", 1) == 0
