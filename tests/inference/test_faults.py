"""Inference when the server fails or the run is stopped: nothing is lost or doubled."""

import json
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from email.utils import formatdate

import pytest
from cot_reward.client.server import retry_after
from cot_reward.errors import UserError
from cot_reward.inference.plan import request_seed
from cot_reward.records import ORDERS
from cot_reward.store import Journal
from helpers.client_world import World, unit
from helpers.environments import REPO
from helpers.server import MockServer

# Time-outs of a second mean something only where other tests do not take the cores.
pytestmark = pytest.mark.slow

# --- faults of the server -------------------------------------------------------------------------


def test_passing_faults_are_retried_and_lasting_ones_are_listed(tmp_path, server):
    world = World(tmp_path, server, count=13)
    once = [
        {"kind": "status", "status": 429, "retry_after": "1"},
        {"kind": "status", "status": 500},
        {"kind": "cut"},
        {"kind": "close"},
        {"kind": "wrong_n"},
        {"kind": "same_index"},
        {"kind": "body", "body": "<html>busy</html>", "type": "text/html"},
        {"kind": "body", "body": "null"},
        {"kind": "abort"},
    ]
    always = [
        {"kind": "status", "status": 400, "message": "the prompt\n is \x1b[31mtoo long"},
        {"kind": "status", "status": 503},
        {"kind": "body", "body": '{"choices": [{"index": 0, "message": null}]}'},
    ]
    faults = [fault | {"times": 1} for fault in once] + always
    server.configure(
        faults=[fault | {"caption": f"caption {number}"} for number, fault in enumerate(faults)]
        # Half a character, as a tokenizer can cut it.
        + [{"caption": "caption 12", "kind": "text", "text": "\ud83d half"}]
    )
    flags = ["--num-samples", 2, "--orders", "given", "--max-attempts", 3, "--deadline", 8]
    done = world.run(*flags)
    assert done.returncode == 0, done.stderr
    # Without the probes, which ask for a single token.
    log = [entry for entry in server.log() if entry["max_tokens"] > 1]
    asked = Counter(entry["caption"] for entry in log)
    rejected = asked.pop("caption 10")
    assert asked == {f"caption {n}": {9: 1, 11: 3, 12: 1}.get(n, 2) for n in range(13) if n != 10}
    # Only its deadline ends it: a rejected request costs no attempt.
    assert rejected > 3
    first, second = (e["when"] for e in log if e["caption"] == "caption 0")
    assert second - first >= 1
    failed = {entry["id"]: entry for entry in world.read("failed")}
    refused, late, malformed = (failed.pop(world.key(number)) for number in (9, 10, 11))
    assert failed == {}
    assert refused["reason"] == "refused"
    assert "HTTP 400" in refused["detail"]
    assert "the prompt is ?[31mtoo long" in refused["detail"]
    assert (late["reason"], malformed["reason"]) == ("deadline", "attempts_used_up")
    assert "8 s are over, last: HTTP 503" in late["detail"]
    assert world.summary["account"] == {"expected": 26, "judged": 20, "failed": 6, "not_asked": 0}
    assert world.summary["retries"] == 9 + 2 + rejected - 1
    halves = [row for row in world.judged if row["id"] == world.key(12)]
    assert {row["conversations"][1]["value"] for row in halves} == {"? half"}
    # Failed requests are asked again only with --retry-failed.
    server.configure()
    assert world.call(*flags) == 0
    assert server.log() == []
    assert world.summary["account"] == {"expected": 26, "judged": 20, "failed": 6, "not_asked": 0}
    assert world.call(*flags, "--retry-failed") == 0
    assert {entry["caption"] for entry in server.log()} == {f"caption {n}" for n in (9, 10, 11)}
    assert world.summary["account"] == {"expected": 26, "judged": 26, "failed": 0, "not_asked": 0}


def test_an_answer_that_the_server_broke_off_is_no_response_under_any_content_type(world, server):
    choice = {"index": 0, "finish_reason": "abort", "message": {"content": "<think>Half"}}
    body = json.dumps({"choices": [choice]})
    fault = {"kind": "body", "body": body, "type": "text/plain", "times": 3}
    server.configure(faults=[fault | {"caption": "caption 1"}])
    assert world.call("--num-samples", 1) == 0
    assert world.summary["account"] == {"expected": 6, "judged": 6, "failed": 0, "not_asked": 0}
    assert all("Half" not in row["conversations"][1]["value"] for row in world.judged)


def test_a_run_in_which_nothing_succeeds_is_an_error(world, server):
    server.configure(faults=[{"kind": "status", "status": 400}])
    done = world.run("--num-samples", 1)
    assert done.returncode == 1
    assert "nothing succeeded" in done.stderr
    assert world.summary["account"]["failed"] == 6


def test_one_record_that_hangs_costs_itself(tmp_path, server):
    world = World(tmp_path, server, count=6)
    server.configure(faults=[{"caption": "caption 2", "kind": "hang"}])
    flags = ["--num-samples", 1, "--orders", "given", "--timeout", 0.5, "--max-attempts", 2]
    started = time.monotonic()
    assert world.call(*flags) == 0
    assert time.monotonic() - started < 30
    (failed,) = world.read("failed")
    assert (failed["id"], failed["reason"]) == (world.key(2), "attempts_used_up")
    assert "no answer within 0.5 s" in failed["detail"]
    assert world.summary["account"] == {"expected": 6, "judged": 5, "failed": 1, "not_asked": 0}


@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_record_that_kills_the_server_again_and_again_is_given_up(tmp_path, concurrency):
    """Only this record: not the requests that were in flight with it."""
    fault = [{"caption": "caption 3", "kind": "exit"}]
    server = MockServer()
    try:
        world = World(tmp_path, server, count=6)
        server.configure(latency=0.05, faults=fault)
        flags = ["--num-samples", 1, "--orders", "given", "--max-attempts", 1]
        running = world.start(*flags, "--concurrency", concurrency)
        for _ in range(400):
            if running.poll() is not None:
                break
            if server.ended:
                port = server.port
                server.stop()
                time.sleep(0.7)
                server = MockServer(port=port)
                server.configure(latency=0.05, faults=fault)
            time.sleep(0.05)
        output, _ = running.communicate(timeout=60)
    finally:
        server.stop()
    assert running.returncode == 0, output
    (failed,) = world.read("failed")
    assert failed["id"] == world.key(3)
    assert "the server went out 3 times while it had this request" in failed["detail"]
    assert world.summary["account"] == {"expected": 6, "judged": 5, "failed": 1, "not_asked": 0}


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": [{"index": 0, "message": {"content": "x"}}], "usage": '
        '{"completion_tokens": 1e999}}',
        "[" * 50_000,
        '{"choices": [{"index": [0], "message": {"content": "x"}}]}',
        '{"choices": [{"index": 0, "message": {"content": ["x"]}}]}',
        '{"choices": [{"index": 0, "message": "x"}]}',
        '{"choices": 7}', "7", '"text"', "",
    ],
)  # fmt: skip
def test_no_malformed_answer_ends_the_run(world, server, body):
    server.configure(faults=[{"caption": "caption 0", "kind": "body", "body": body}])
    flags = ["--num-samples", 1, "--orders", "given", "--max-attempts", 1]
    assert world.call(*flags) == 0
    (failed,) = world.read("failed")
    assert (failed["id"], failed["reason"]) == (world.key(0), "attempts_used_up")
    assert world.summary["account"] == {"expected": 3, "judged": 2, "failed": 1, "not_asked": 0}


def test_retry_after_is_seconds_or_a_date_or_nothing():
    now = time.time()
    assert retry_after({"retry-after": "7"}) == 7
    assert 50 < retry_after({"retry-after": formatdate(now + 60, usegmt=True)}) <= 61
    for nothing in (
        "",
        "soon",
        "-3",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
        "nan",
        "\ud83d",
    ):
        assert not retry_after({"retry-after": nothing}) > 0


def test_names_of_models_are_text_without_commands_for_the_terminal(world):
    with MockServer(models="one\x1b[2J,two") as several, pytest.raises(UserError) as error:
        world.call("--base-url", several.url)
    assert "one?[2J, two" in str(error.value)


def test_a_request_has_a_deadline_whatever_its_attempts(world, server):
    server.configure(faults=[{"caption": "caption 0", "kind": "status", "status": 429,
                         "retry_after": "30"}])  # fmt: skip
    assert world.call("--num-samples", 1, "--orders", "given", "--deadline", 5) == 0
    (failed,) = world.read("failed")
    assert failed["reason"] == "deadline"
    assert "HTTP 429" in failed["detail"]
    assert [entry["caption"] for entry in server.log()].count("caption 0") == 1


def test_a_completion_with_a_media_token_reaches_no_training_file(world, server):
    bad = "<think>An <image> token. Image 1 (9/10); Image 2 (2/10)</think>"
    bad += "<answer>Image 1 is better</answer>"
    server.configure(faults=[{"caption": "caption 0", "kind": "text", "text": bad}])
    assert world.call("--num-samples", 1) == 0
    assert {row["id"] for row in world.read("unusable")} >= {world.key(0)}
    assert world.summary["account"]["judged"] == 6


# --- servers that are out -------------------------------------------------------------------------


def test_a_server_that_dies_and_comes_back_costs_nothing(tmp_path):
    with MockServer() as first:
        world = World(tmp_path, first, count=30)
        first.configure(latency=0.2)
        running = world.start("--num-samples", 1, "--concurrency", 4, "--max-attempts", 1)
        first.wait_for(12)
        port = first.port
    time.sleep(2)
    with MockServer(port=port):
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert "the server is out" in output
    assert "the server is back after" in output
    # Each request has one attempt, and the outage took none.
    assert world.summary["account"] == {"expected": 60, "judged": 60, "failed": 0, "not_asked": 0}
    assert world.summary["pauses"] == 1
    assert world.summary["paused_seconds"] > 1


def test_a_server_that_stays_dead_ends_the_run_with_everything_kept(tmp_path):
    with MockServer() as first:
        world = World(tmp_path, first, count=150)
        first.configure(latency=0.05)
        flags = ["--num-samples", 1, "--concurrency", 8, "--max-attempts", 1]
        running = world.start(*flags, "--max-pause", 2)
        first.wait_for(100)
        port = first.port
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1, output
    assert "the server was out for more than 2 s" in output
    assert "Traceback" not in output
    assert not (world.out / "summary.json").exists()
    kept = len(journaled(world))
    assert 80 < kept < 300
    assert len(world.judged) == kept
    assert world.read("failed") == []
    assert f"{300 - kept} not asked" in output
    with MockServer(port=port) as again:
        assert world.call(*flags) == 0
        assert len(again.log()) == 300 - kept
    assert world.summary["account"]["judged"] == 300


def test_a_server_that_hangs_for_good_ends_the_run_without_waiting_for_it(tmp_path, server):
    world = World(tmp_path, server, count=20)
    server.configure(latency=0.1)
    running = world.start("--num-samples", 1, "--concurrency", 4, "--timeout", 60,
                          "--max-pause", 1, "--max-attempts", 1)  # fmt: skip
    server.wait_for(10)
    # Three requests hang. The fourth is cut off, and its probe shows the outage.
    server.configure(faults=[{"kind": "cut", "times": 1}, {"kind": "hang"}], models=["other"])
    started = time.monotonic()
    output, _ = running.communicate(timeout=50)
    assert running.returncode == 1, output
    assert time.monotonic() - started < 30
    assert "the server was out for more than 1 s" in output
    assert world.read("failed") == []
    server.configure()


@pytest.mark.parametrize(
    "fault", [{"kind": "hang"}, *({"kind": "status", "status": n} for n in (429, 500, 503))]
)
def test_an_engine_that_is_out_from_the_start_is_noticed(world, server, fault):
    """A quota that is used up looks the same: no request is answered."""
    server.configure(faults=[fault])
    flags = ["--num-samples", 1, "--timeout", 0.5, "--max-attempts", 1]
    assert world.call(*flags, "--max-pause", 1) == 1
    assert world.read("failed") == world.judged == []
    server.configure()
    assert world.call(*flags) == 0
    assert world.summary["account"]["judged"] == 6


@pytest.mark.parametrize(
    ("configuration", "seconds", "detail"),
    [
        # An engine that hangs behind a server that answers.
        ({"faults": [{"kind": "hang"}]}, 4, "(no answer within 1 s)"),
        # An engine that is dead, behind a server that lists its model, as vLLM's does for seconds.
        ({"faults": [{"kind": "status", "status": 500}]}, 2, "(HTTP 500"),
        # An engine that breaks off its requests, as vLLM does when it is put to sleep.
        ({"faults": [{"kind": "abort"}]}, 2, "(the server broke off its answer (abort))"),
        # A gateway whose server is down.
        (
            {"models_status": 503, "faults": [{"kind": "status", "status": 503}]}, 2, "(HTTP 503",
        ),
        # A model that is unloaded.
        (
            {"models": ["other"], "faults": [{"kind": "status", "status": 404}]}, 2,
            "(it lists other, not mock)",
        ),
    ],
)  # fmt: skip
def test_a_server_that_is_out_for_a_while_is_waited_for(
    tmp_path, server, configuration, seconds, detail
):
    world = World(tmp_path, server, count=20)
    flags = ["--num-samples", 1, "--concurrency", 4, "--timeout", 1, "--max-attempts", 1]
    server.configure(latency=0.1)
    running = world.start(*flags)
    server.wait_for(10)
    server.configure(**configuration)
    time.sleep(seconds)
    server.configure()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert f"the server is out {detail}" in output
    assert world.summary["account"] == {"expected": 40, "judged": 40, "failed": 0, "not_asked": 0}


@pytest.mark.parametrize("concurrency", [8, "auto"])
def test_a_server_that_is_full_is_no_fault_of_the_requests(tmp_path, server, concurrency):
    world = World(tmp_path, server, count=20)
    server.configure(latency=0.2, max_requests=2)
    flags = ["--num-samples", 1, "--max-attempts", 1, "--concurrency", concurrency]
    assert world.run(*flags).returncode == 0
    assert world.summary["account"] == {"expected": 40, "judged": 40, "failed": 0, "not_asked": 0}
    assert world.summary["retries"] > 0
    assert concurrency == 8 or world.summary["concurrency"]["overloads"] > 0


def test_a_key_that_is_refused_stops_the_run_and_is_told_to_nobody(tmp_path, server):
    world = World(tmp_path, server, count=20)
    fault = {"kind": "status", "status": 401, "message": "Incorrect API key: sk-very-secret"}
    server.configure(latency=0.1)
    flags = ["--num-samples", 1, "--concurrency", 2, "--api-key-env", "SERVER_KEY"]
    running = world.start(*flags, env={"SERVER_KEY": "sk-very-secret"})
    server.wait_for(5)
    server.configure(faults=[fault])
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 2, output
    assert "HTTP 401" in output
    assert "--api-key-env" in output
    written = output + "".join(p.read_text() for p in world.out.iterdir())
    assert "sk-very-secret" not in written
    assert journaled(world)


def test_ctrl_c_during_a_pause_ends_at_once(tmp_path):
    with MockServer() as first:
        world = World(tmp_path, first, count=10)
        first.configure(latency=0.2)
        running = world.start("--num-samples", 1, "--concurrency", 2)
        first.wait_for(4)
    time.sleep(1.5)
    running.send_signal(signal.SIGINT)
    # The pause itself would last for half an hour.
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    assert len(journaled(world)) == len(world.judged)


# --- stopped runs ---------------------------------------------------------------------------------


def journaled(world: World) -> list[tuple[str, str, int]]:
    """The units of the complete responses on disk; a torn last line counts for nothing."""
    path = world.out / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [unit(entry) for entry in entries if "reason" not in entry]


def units_of(world: World, entry: dict, seeds: dict[int, tuple[str, str]]) -> set:
    """The units that a request asked for: its seed tells the order and the first sample."""
    first = next(s for s in range(entry["seed"], entry["seed"] - 10, -1) if s in seeds)
    start = entry["seed"] - first
    return {(*seeds[first], start + index) for index in range(entry["n"])}


def test_kill_9_at_random_points_and_the_same_command_continues(tmp_path, server):
    world = World(tmp_path, server, count=40)
    seeds = {
        request_seed(0, world.key(n), order): (world.key(n), order)
        for n in range(40) for order in ORDERS
    }  # fmt: skip
    flags = ["--num-samples", 2, "--concurrency", 2]
    draw = random.Random(1)
    for _ in range(20):
        before = set(journaled(world))
        server.configure(latency=0.03)
        running = world.start(*flags)
        # Half of them are killed while they ask, half at any point from the start on.
        if draw.random() < 0.5:
            server.wait_for(1)
            time.sleep(draw.uniform(0, 0.15))
        else:
            time.sleep(draw.uniform(0.1, 1.2))
        running.kill()
        running.communicate()
        assert not (world.out / "summary.json").exists()
        asked = [units_of(world, entry, seeds) for entry in server.log()]
        assert not before & set().union(*asked)
        assert before <= set(journaled(world))
    before = set(journaled(world))
    assert before
    server.configure()
    assert world.call(*flags) == 0
    asked = [u for entry in server.log() for u in units_of(world, entry, seeds)]
    everything = {(*where, index) for where in seeds.values() for index in range(2)}
    assert Counter(asked) == Counter(everything - before)
    assert Counter(journaled(world)) == Counter(map(unit, world.judged)) == Counter(everything)
    assert world.summary["account"]["judged"] == 160
    # Nothing half-written is left.
    assert {path.name for path in world.out.iterdir()} == {
        "journal.jsonl", "settings.json", "summary.json",
        "correct.jsonl", "incorrect.jsonl", "unusable.jsonl", "failed.jsonl",
    }  # fmt: skip


def test_a_full_disk_stops_the_run_with_a_clear_error_and_it_continues(tmp_path, server):
    world = World(tmp_path, server, count=20)
    flags = ["--num-samples", 2]

    def full() -> None:
        # A bound on the size of files: a write fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    stopped = subprocess.run(
        world.command(*flags), cwd=REPO, capture_output=True, text=True, preexec_fn=full,
        check=False, timeout=60,
    )  # fmt: skip
    assert stopped.returncode == 2
    assert "cannot be written" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (world.out / "summary.json").exists()
    kept = journaled(world)
    server.configure()
    assert world.call(*flags) == 0
    assert sum(entry["n"] for entry in server.log()) == 80 - len(kept)
    assert Counter(map(unit, world.judged)).most_common(1)[0][1] == 1
    assert world.summary["account"] == {"expected": 80, "judged": 80, "failed": 0, "not_asked": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_requests_in_flight_and_exits_130(tmp_path, server, number):
    world = World(tmp_path, server, count=20)
    server.configure(latency=0.4)
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
    server.configure()
    assert world.call(*flags) == 0
    assert len(server.log()) == 40 - asked
    assert world.summary["account"] == {"expected": 40, "judged": 40, "failed": 0, "not_asked": 0}


def test_a_second_ctrl_c_ends_at_once(world, server):
    # No answer comes before this test gives up.
    server.configure(latency=120)
    running = world.start("--num-samples", 1)
    server.wait_for(6)
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in output


def test_a_second_run_in_the_same_folder_is_refused(world, server):
    with (
        Journal(world.out / "journal.jsonl"),
        pytest.raises(UserError, match="another run is writing"),
    ):
        world.call("--num-samples", 1)
    assert server.log() == []
    assert world.call("--num-samples", 1) == 0
