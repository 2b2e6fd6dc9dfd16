"""Inference as a user runs it: the script in a process, against a real HTTP server."""

import base64
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.plan import request_seed
from cot_reward.judge import destination, judge
from cot_reward.records import ORDERS, ROW_FIELDS
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import template_hash
from helpers.client_world import SCRIPT, World, unit
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row
from helpers.server import MockServer

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
    server.configure()
    done = world.run("--num-samples", 8, "--seed", 3)
    assert (done.returncode, server.log()) == (0, [])
    assert world.judged == before
    assert world.call("--num-samples", 10, "--seed", 3) == 0
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
        (["--template", "own.txt"], "template of image_generation: "),
    ],
)
def test_other_settings_in_the_same_folder_are_named(finished, tmp_path, flags, named):
    if flags[1] == "own.txt":
        flags = ["--template", tmp_path / "own.txt"]
        flags[1].write_text("Judge. Text Caption: [{caption}]")
    world = finished.world
    summary = world.summary
    with pytest.raises(UserError, match="holds a run with other settings") as error:
        world.call("--num-samples", 8, "--seed", 3, *flags)
    assert named in str(error.value)
    # The complete folder stays complete.
    assert world.summary == summary


# --- bad records and bad media --------------------------------------------------------------------


def test_a_bad_record_or_medium_costs_only_itself(world, server):
    images = world.media / "images"
    data = (images / "0a.png").read_bytes()
    (images / "cut.png").write_bytes(data[: len(data) // 2])
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_text("not an image")
    outside = picture(world.media.parent / "outside.png")
    (images / "link.png").symlink_to(outside)
    bad = {
        "corrupt": "cut.png", "empty": "empty.png", "not_an_image": "text.png",
        "escapes": "link.png", "missing": "nowhere.png",
    }  # fmt: skip
    # The first rows are bad: the adapter must be found from a later row.
    records = [
        {"prompt": "no images"}, "no object", raw_row("up", ["../../outside.png", "0a.png"]),
        raw_row("absolute", [str(outside), "0a.png"]), raw_row("", ["0a.png", "0b.png"]),
        raw_row("no label", ["0a.png", "0b.png"]) | {"conversations": []},
        raw_row("half \ud83d", ["0a.png", "0b.png"]),
    ]  # fmt: skip
    media = [raw_row(f"bad {reason}", ["0a.png", name]) for reason, name in bad.items()]
    world.rows = records + media + world.rows
    done = world.run("--num-samples", 2)
    assert done.returncode == 0, done.stderr
    failed = world.read("failed")
    # Two records hold a path that leaves the root. A link shows it only when it is read.
    reasons = {"bad_record": 5} | dict.fromkeys(bad, 2) | {"escapes": 4}
    assert Counter(entry["reason"] for entry in failed) == reasons
    assert {entry["where"] for entry in failed} == {f"{world.data}:{n}" for n in range(1, 13)}
    assert all(entry["detail"] for entry in failed)
    # A bad record stands for both orders, a bad medium for one at a time.
    assert {entry["units"] for entry in failed if entry["reason"] == "bad_record"} == {4}
    assert {entry["units"] for entry in failed if entry["reason"] == "corrupt"} == {2}
    assert world.summary["account"] == {"expected": 60, "judged": 12, "failed": 48, "not_asked": 0}
    assert len(server.log()) == 6


def test_duplicates_count_once_and_conflicting_labels_are_bad_records(world):
    first, second, third = world.rows
    mirrored = raw_row("caption 0", first["images"][::-1], label=2)
    conflicting = raw_row("caption 1", second["images"], label=1)
    world.rows = [first, second, third, first, mirrored, conflicting]
    assert world.call("--num-samples", 1) == 0
    assert {row["id"] for row in world.judged} == {world.key(0), world.key(2)}
    assert world.summary["duplicates"]["count"] == 3
    (failed,) = world.read("failed")
    assert (failed["reason"], failed["id"]) == ("conflicting_label", world.key(1))
    assert failed["where"].endswith(":2")
    assert f"{world.data}:6" in failed["detail"]
    assert world.summary["account"] == {"expected": 6, "judged": 4, "failed": 2, "not_asked": 0}


def test_no_usable_comparison_is_an_error_that_shows_the_first(world):
    world.rows = [{"x": 1}, {"x": 2}]
    with pytest.raises(UserError, match="no usable comparison, 2 bad") as error:
        world.call()
    assert "no adapter knows rows with the keys ['x']" in str(error.value)


def test_a_large_image_is_sent_resized_and_a_cache_that_cannot_be_written_is_named(world, server):
    import io

    from PIL import Image

    picture(world.media / "images/0a.png", size=600)
    flags = ["--num-samples", 1, "--orders", "given", "--image-max-pixels", 10_000]
    world.rows = world.rows[:1]
    (world.media / ".cache").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written") as error:
        world.call(*flags)
    assert str(world.media / ".cache") in str(error.value)
    (world.media / ".cache").unlink()
    assert world.call(*flags) == 0
    url = server.log()[-1]["images"][0]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert image.size == (100, 100)


# --- mistakes of the user -------------------------------------------------------------------------


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_wrong_model_is_named_with_the_served_models(world, server):
    message = error_of(world.run("--model", "other"))
    assert f"{server.url} has no model 'other'; it lists: mock" in message
    assert server.log() == []


def test_with_several_models_the_user_must_choose(world):
    with MockServer(models="one,two") as several:
        with pytest.raises(UserError, match="serves several models: choose by --model"):
            world.call("--base-url", several.url)
        assert world.call("--base-url", several.url, "--model", "two") == 0
    assert {row["model"] for row in world.judged} == {"two"}


def test_a_server_that_is_down_or_is_no_model_server_is_named(world, server):
    with MockServer() as gone:
        url = gone.url
    assert f"{url}: no answer from the server" in error_of(world.run("--base-url", url))
    # An address without models, which answers with an error page.
    wrong = server.url.replace("/v1", "/v2")
    with pytest.raises(UserError, match=r"is no OpenAI-compatible server .*; is --base-url right"):
        world.call("--base-url", wrong)
    for known in (server.url.removesuffix("/v1"), f"{server.url}/chat/completions"):
        assert world.call("--num-samples", 1, "--base-url", known) == 0


def test_a_server_that_refuses_or_is_in_trouble_is_told_apart(world, server):
    for status, words in ((403, "refuses access"), (500, "is in trouble"), (401, "is the API key")):
        server.configure(models_status=status)
        with pytest.raises(UserError, match=words):
            world.call("--num-samples", 1)


def test_a_proxy_of_the_environment_is_passed_by_on_the_way_to_this_machine(world):
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks://127.0.0.1:9"}
    running = world.start("--num-samples", 1, env=proxies)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0", "--num-samples", "2"], "--temperature 0 always gives the same"),
        (["--num-sample", "2"], "unknown flag '--num-sample'. Did you mean '--num-samples'?"),
        (["--orders", "all"], "'all' is not one of given, swapped, both"),
        (["--data", "nowhere.json"], "nowhere.json: no such file"),
        (["--adapter", "hpd"], "unknown --adapter 'hpd'; known: upstream"),
        (["--source", "hpd"], "unknown --adapter 'hpd'; known: upstream"),
        (["--media-root", "/etc"], "is not inside --media-root"),
        (["--template", "nowhere.txt"], "--template nowhere.txt"),
    ],
)
def test_mistakes_are_named(world, flags, message):
    with pytest.raises(UserError) as error:
        world.call(*flags)
    assert message in str(error.value)


def test_help_fits_on_two_screens_and_loads_nothing_slow():
    script = "import runpy, sys\nsys.argv = ['x', '--help']\n"
    script += "try:\n runpy.run_path('scripts/image_stream_gpt.py', run_name='__main__')\n"
    script += "except SystemExit: print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": "scripts"},
    ).stdout.splitlines()[-1].split()  # fmt: skip
    assert "cot_reward.inference.run" in loaded
    assert not {"torch", "transformers", "trl", "datasets", "openai", "numpy"} & set(loaded)
    done = subprocess.run([*SCRIPT, "--help"], cwd=REPO, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 72
    assert max(map(len, lines)) <= 100
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert "--num-samples" in flags
    assert len(flags) == len(set(flags))
