"""Stage 2's client as a user runs it: the script in a process, against a real HTTP server."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPO, picture, raw_row, read_lines
from cot_reward.inference import request_seed
from cot_reward.judge import destination, judge
from cot_reward.records import ORDERS, ROW_FIELDS, comparison_key
from cot_reward.tasks import TASKS, template_hash
from server import MockServer

SCRIPT = [sys.executable, "scripts/image_stream_gpt.py"]


@pytest.fixture(scope="module")
def server():
    with MockServer() as running:
        yield running


class World:
    """A media root with images, a data file, and the command line about them."""

    def __init__(self, folder: Path, server: MockServer, count: int = 3) -> None:
        self.media, self.out, self.server = folder / "media", folder / "out", server
        self.data = folder / "data.json"
        self.rows = []
        for number in range(count):
            names = [f"{number}a.png", f"{number}b.png"]
            for shade, name in enumerate(names):
                picture(self.media / "images" / name, (number, 40 * shade, 90))
            self.rows.append(raw_row(f"caption {number}", names, label=1 + number % 2))
        (folder / "empty.yaml").write_text("")
        self.base = [
            "--config", folder / "empty.yaml", "--data", self.data, "--media-root", self.media,
            "--image-root", self.media / "images", "--base-url", server.url, "--out", self.out,
        ]  # fmt: skip
        server.tell()

    def command(self, *flags: object) -> list[str]:
        self.data.write_text(json.dumps(self.rows))
        # The last flag of a name wins.
        return [*SCRIPT, *map(str, self.base), *map(str, flags)]

    def run(self, *flags: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*flags), cwd=REPO, capture_output=True, text=True, check=False, timeout=120
        )

    def start(self, *flags: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags), cwd=REPO, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def read(self, name: str) -> list[dict]:
        return read_lines(self.out / f"{name}.jsonl")

    @property
    def judged(self) -> list[dict]:
        return [row for name in ("correct", "incorrect", "unusable") for row in self.read(name)]

    @property
    def summary(self) -> dict:
        return json.loads((self.out / "summary.json").read_text())

    def key(self, number: int) -> str:
        names = [f"images/{name}" for name in self.rows[number]["images"]]
        return comparison_key("image_generation", self.rows[number]["prompt"], (), names)


@pytest.fixture
def world(tmp_path, server):
    return World(tmp_path, server)


def unit(row: dict) -> tuple[str, str, int]:
    return row.get("id", row.get("key")), row["order"], row["sample"]


# --- a run without faults -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server):
    """Three comparisons, both orders, eight samples: every kind of answer."""
    world = World(tmp_path_factory.mktemp("finished"), server)
    done = world.run("--num-samples", 8, "--seed", 3)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(world=world, done=done, log=server.log(), rows=world.judged)


def test_every_row_has_every_key_in_its_type(finished):
    assert len(finished.rows) == 3 * 2 * 8
    for row in finished.rows:
        assert list(row) == list(ROW_FIELDS)
        assert all(type(row[name]) is kind for name, kind in ROW_FIELDS.items())


def test_each_unit_stands_once(finished):
    wanted = {(finished.world.key(n), o, i) for n in range(3) for o in ORDERS for i in range(8)}
    assert Counter(map(unit, finished.rows)) == Counter(wanted)


def test_label_images_and_answer_count_as_presented(finished):
    for number, raw in enumerate(finished.world.rows):
        shown = [f"images/{name}" for name in raw["images"]]
        label = 1 + number % 2
        for row in finished.rows:
            if row["id"] != finished.world.key(number):
                continue
            swapped = row["order"] == "swapped"
            assert row["images"] == (shown[::-1] if swapped else shown)
            assert row["label"] == (3 - label if swapped else label)
            if row["answer"]:
                text = row["conversations"][1]["value"]
                assert f"<answer>Image {row['answer']} is better</answer>" in text
                assert (row["verdict"] == "correct") == (row["answer"] == row["label"])


def test_rows_lie_in_the_file_of_their_verdict(finished):
    task = TASKS["image_generation"]
    for name in ("correct", "incorrect", "unusable"):
        rows = finished.world.read(name)
        assert rows
        for row in rows:
            text = row["conversations"][1]["value"]
            verdict = judge(text, task, row["label"], row["finish_reason"])
            found = (row["verdict"], row["coherence"], row["answer"])
            assert found == (verdict.verdict, verdict.coherence, verdict.answer)
            assert destination(verdict) == name
    assert {row["verdict"] for row in finished.world.read("unusable")} == {
        "unparsed", "truncated", "correct",
    }  # fmt: skip


def test_prompt_source_model_and_template(finished):
    template = TASKS["image_generation"].template
    for row in finished.rows:
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image><image>You are shown")
        assert human["value"].endswith("[caption 0]") == (row["id"] == finished.world.key(0))
        assert (row["source"], row["model"], row["videos"]) == ("data", "mock", [])
        assert row["template_hash"] == template_hash(template)


def test_one_request_for_all_samples_of_an_order_with_its_images_and_seed(finished):
    assert len(finished.log) == 6
    for number in range(3):
        bodies = {
            order: [f"images/{n}" for n in finished.world.rows[number]["images"]][::step]
            for order, step in (("given", 1), ("swapped", -1))
        }
        for order, names in bodies.items():
            seed = request_seed(3, finished.world.key(number), order)
            (request,) = (entry for entry in finished.log if entry["seed"] == seed)
            assert (request["n"], request["temperature"]) == (8, 1.0)
            sent = [base64.b64decode(url.partition("base64,")[2]) for url in request["images"]]
            assert sent == [(finished.world.media / name).read_bytes() for name in names]


def test_the_account_holds_and_the_summary_says_how_it_was_made(finished):
    summary = finished.world.summary
    assert summary["account"] == {"expected": 48, "judged": 48, "failed": 0, "not_asked": 0}
    assert sum(summary["files"].values()) == sum(summary["verdicts"].values()) == 48
    assert summary["accuracy"]["count"] == summary["verdicts"]["correct"]
    assert summary["survives_swap"]["of"] == 24
    assert summary["prompt_tokens"] == 600
    assert summary["completion_tokens"] == 48 * 50
    assert summary["settings"]["model"] == "mock"
    assert "openai" in summary["versions"]
    assert finished.world.read("failed") == []
    assert "48 judged of 48" in finished.done.stdout


def test_datasets_loads_the_files(finished, tmp_path):
    from datasets import load_dataset

    for name in ("correct", "incorrect"):
        path = str(finished.world.out / f"{name}.jsonl")
        loaded = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
        assert loaded.column_names == list(ROW_FIELDS)
        assert loaded.to_list() == finished.world.read(name)


def test_the_same_command_asks_nothing_again_and_more_samples_extend_it(finished, server):
    world, before = finished.world, finished.rows
    server.tell()
    done = world.run("--num-samples", 8, "--seed", 3)
    assert (done.returncode, server.log()) == (0, [])
    assert world.judged == before
    done = world.run("--num-samples", 10, "--seed", 3)
    assert done.returncode == 0
    assert sorted({entry["n"] for entry in server.log()}) == [2]
    seeds = {request_seed(3, world.key(n), order) + 8 for n in range(3) for order in ORDERS}
    assert {entry["seed"] for entry in server.log()} == seeds
    assert Counter(map(unit, world.judged)).most_common(1)[0][1] == 1
    assert len(world.judged) == 60


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature", 0.5], "temperature: 1.0 there, 0.5 now"),
        (["--seed", 4], "seed: 3 there, 4 now"),
        (["--max-tokens", 9], "max_tokens: 2048 there, 9 now"),
        (["--template", "own.txt"], "templates"),
    ],
)
def test_other_settings_in_the_same_folder_are_named(finished, tmp_path, flags, named):
    if flags[1] == "own.txt":
        flags = ["--template", tmp_path / "own.txt"]
        flags[1].write_text("Judge. Text Caption: [{caption}]")
    world = finished.world
    summary = world.summary
    done = world.run("--num-samples", 8, "--seed", 3, *flags)
    assert done.returncode == 2
    assert "holds a run with other settings" in done.stderr
    assert named in done.stderr
    # What was complete stays so.
    assert world.summary == summary


# --- bad records and bad media --------------------------------------------------------------------


def test_a_bad_record_or_medium_costs_only_itself(world, server):
    images = world.media / "images"
    whole = (images / "0a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_text("not an image")
    outside = picture(world.media.parent / "outside.png")
    (images / "link.png").symlink_to(outside)
    bad = {
        "corrupt": "cut.png", "empty": "empty.png", "not_an_image": "text.png",
        "escapes": "link.png", "missing": "nowhere.png",
    }  # fmt: skip
    # The first rows are bad: none may decide what the rest is.
    records = [
        {"prompt": "no images"}, "no object", raw_row("up", ["../../outside.png", "0a.png"]),
        raw_row("absolute", [str(outside), "0a.png"]), raw_row("", ["0a.png", "0b.png"]),
        raw_row("no label", ["0a.png", "0b.png"], label=3), raw_row("half \ud83d", ["0a.png", "0b.png"]),
    ]  # fmt: skip
    media = [raw_row(f"bad {reason}", ["0a.png", name]) for reason, name in bad.items()]
    world.rows = records + media + world.rows
    done = world.run("--num-samples", 2)
    assert done.returncode == 0, done.stderr
    failed = world.read("failed")
    assert Counter(entry["reason"] for entry in failed) == {"bad_record": 7} | dict.fromkeys(bad, 2)
    assert {entry["where"] for entry in failed} == {f"{world.data}:{n}" for n in range(1, 13)}
    assert all(entry["detail"] for entry in failed)
    # A bad record stands for both orders, a bad medium for one at a time.
    assert {entry["units"] for entry in failed if entry["reason"] == "bad_record"} == {4}
    assert {entry["units"] for entry in failed if entry["reason"] == "corrupt"} == {2}
    assert world.summary["account"] == {"expected": 60, "judged": 12, "failed": 48, "not_asked": 0}
    assert len(server.log()) == 6


def test_duplicates_count_once_and_conflicting_labels_not_at_all(world):
    first, second, third = world.rows
    mirrored = raw_row("caption 0", first["images"][::-1], label=2)
    conflicting = raw_row("caption 1", second["images"], label=1)
    world.rows = [first, second, third, first, mirrored, conflicting]
    done = world.run("--num-samples", 1)
    assert done.returncode == 0, done.stderr
    assert {row["id"] for row in world.judged} == {world.key(0), world.key(2)}
    assert world.summary["duplicates"]["count"] == 3
    (failed,) = world.read("failed")
    assert (failed["reason"], failed["id"]) == ("conflicting_label", world.key(1))
    assert failed["where"].endswith(":2")
    assert f"{world.data}:6" in failed["detail"]
    assert world.summary["account"] == {"expected": 6, "judged": 4, "failed": 2, "not_asked": 0}


def test_no_usable_comparison_is_an_error_that_shows_the_first(world):
    world.rows = [{"x": 1}, {"x": 2}]
    done = world.run()
    assert done.returncode == 2
    assert "no usable comparison, 2 bad" in done.stderr
    assert "no adapter knows rows with the keys ['x']" in done.stderr


def test_an_image_above_the_bound_travels_small_and_a_cache_that_cannot_be_is_named(world, server):
    import io

    from PIL import Image

    picture(world.media / "images/0a.png", size=600)
    flags = ["--num-samples", 1, "--orders", "given", "--image-max-pixels", 10_000]
    world.rows = world.rows[:1]
    (world.media / ".cache").write_text("in the way")
    done = world.run(*flags)
    assert done.returncode == 2
    assert str(world.media / ".cache") in done.stderr.splitlines()[-1]
    (world.media / ".cache").unlink()
    assert world.run(*flags).returncode == 0
    url = server.log()[-1]["images"][0]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert image.size == (100, 100)


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
    assert world.run(*flags).returncode == 0
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
        server.tell(latency=0.03)
        running = world.start(*flags)
        server.wait_for(1)
        time.sleep(draw.uniform(0, 0.12))
        running.kill()
        running.communicate()
        assert not (world.out / "summary.json").exists()
        asked = [units_of(world, entry, seeds) for entry in server.log()]
        assert not before & set().union(*asked)
        assert before <= set(journaled(world))
    before = set(journaled(world))
    assert before
    server.tell()
    assert world.run(*flags).returncode == 0
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
    assert world.run(*flags).returncode == 0
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
    server.tell(latency=1.5)
    running = world.start("--num-samples", 1, "--concurrency", 3)
    server.wait_for(1)
    second = world.run("--num-samples", 1)
    assert second.returncode == 2
    assert "another run is writing" in second.stderr
    running.communicate(timeout=30)
    assert running.returncode == 0
    assert len(server.log()) == 6
    assert world.summary["account"]["judged"] == 6


# --- mistakes of the user -------------------------------------------------------------------------


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_wrong_model_is_named_with_those_that_there_are(world, server):
    said = error_of(world.run("--model", "other"))
    assert f"{server.url} has no model 'other'; it lists: mock" in said
    assert server.log() == []


def test_of_several_models_none_is_guessed(world):
    with MockServer(models="one,two") as several:
        said = error_of(world.run("--base-url", several.url))
        assert "serves several models: choose by --model" in said
        assert world.run("--base-url", several.url, "--model", "two").returncode == 0
    assert {row["model"] for row in world.judged} == {"two"}


def test_a_server_that_is_down_or_no_such_server_is_named(world, server):
    with MockServer() as gone:
        url = gone.url
    assert f"{url}: no answer from the server" in error_of(world.run("--base-url", url))
    # The log answers with JSON of another shape.
    wrong = server.url.removesuffix("/v1")
    assert "no answer from the server" in error_of(world.run("--base-url", wrong))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0", "--num-samples", "2"], "--temperature 0 always gives the same"),
        (["--num-sample", "2"], "unknown flag '--num-sample'. Did you mean '--num-samples'?"),
        (["--orders", "all"], "'all' is not one of given, swapped, both"),
        (["--data", "nowhere.json"], "nowhere.json: no such file"),
        (["--source", "hpd"], "unknown --source 'hpd'; known: upstream"),
        (["--image-root", "/etc"], "is not inside --media-root"),
        (["--template", "nowhere.txt"], "--template nowhere.txt"),
    ],
)
def test_mistakes_are_one_message(world, flags, message):
    assert message in error_of(world.run(*flags))


def test_help_is_fast_and_loads_no_torch():
    script = "import runpy, sys\nsys.argv = ['x', '--help']\n"
    script += "try:\n runpy.run_path('scripts/image_stream_gpt.py', run_name='__main__')\n"
    script += "except SystemExit: print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": "scripts"},
    ).stdout.splitlines()[-1].split()  # fmt: skip
    assert "cot_reward.inference" in loaded
    assert not {"torch", "transformers", "trl", "datasets", "openai", "numpy"} & set(loaded)
    started = time.monotonic()
    done = subprocess.run([*SCRIPT, "--help"], cwd=REPO, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 2
    assert "--num-samples" in done.stdout
