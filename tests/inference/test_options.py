"""Options of inference: inputs of all forms, templates, media by address, dry runs."""

import asyncio
import base64
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.fleet import Fleet, Member
from cot_reward.client.flow import send_requests
from cot_reward.client.outage import Outage
from cot_reward.client.sender import PREPARED_REQUESTS, FleetSender, ReadUrl
from cot_reward.client.server import Server
from cot_reward.errors import UserError
from cot_reward.records import Comparison
from cot_reward.rows.checking import check_files
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import template_hash
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row, write_lines
from helpers.server import MockServer

# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_jsonl_parquet_and_standard_input_give_the_same(world, tmp_path):
    assert world.call("--num-samples", 1) == 0
    wanted = {(row["id"], row["order"]) for row in world.judged}
    lines = write_lines(tmp_path / "data.jsonl", world.rows)
    pq.write_table(pa.Table.from_pylist(world.rows), tmp_path / "data.parquet")
    for source in (lines, tmp_path / "data.parquet", Path("-")):
        world.out = tmp_path / f"out{source.suffix}"
        command = world.command("--num-samples", 1, "--out", world.out)
        command[command.index("--data") + 1] = str(source)
        stdin = lines.read_bytes() if source == Path("-") else b""
        done = subprocess.run(command, cwd=REPO, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert {(row["id"], row["order"]) for row in world.judged} == wanted
        assert {row["source"] for row in world.judged} == {"stdin" if stdin else "data"}


def test_several_files_are_one_run_and_more_data_extend_it(world, tmp_path, server):
    more = tmp_path / "more.json"
    more.write_text(json.dumps([world.rows.pop(), world.rows[0]]))
    assert world.call("--num-samples", 1) == 0
    server.configure()
    assert world.call("--num-samples", 1, "--data", more) == 0
    assert len(server.log()) == 2
    assert world.summary["account"] == {"expected": 6, "judged": 6, "failed": 0, "not_asked": 0}
    (duplicate,) = world.read("duplicates")
    assert duplicate == {
        "id": world.key(0), "where": f"{more}:2", "first": f"{world.data}:1",
    }  # fmt: skip


def test_the_record_that_is_read_first_may_change_from_run_to_run(world, tmp_path, server):
    """A comparison may stand in two files, once in each order, and either may be read first."""
    mirrored = tmp_path / "mirrored.json"
    mirrored.write_text(json.dumps([
        raw_row(row["prompt"], row["images"][::-1], label=1 + number % 2)
        for number, row in enumerate(world.rows[:1], 1)
    ]))  # fmt: skip
    flags = ["--num-samples", 3, "--orders", "both"]
    first_here = [*flags, "--data", mirrored]

    def judged() -> dict:
        return {
            (row["id"], *row["images"], row["sample"]): (
                row["conversations"][1]["value"], row["label"], row["verdict"],
            )
            for row in world.judged
        }  # fmt: skip

    assert world.call(*first_here) == 0
    before = judged()
    server.configure()
    command = world.command(*flags, "--num-samples", 4)
    at = command.index("--data")
    command[at + 1 : at + 2] = [str(mirrored), str(world.data)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.log()) == 6
    after = judged()
    assert len(after) == 24
    assert {unit: after[unit] for unit in before} == before


@pytest.mark.parametrize("wrong_first", [False, True])
def test_responses_to_another_prompt_are_refused_without_the_settings_file(
    world, tmp_path, wrong_first
):
    assert world.call("--num-samples", 1) == 0
    rows = world.judged
    (tmp_path / "own.txt").write_text("Judge. Text Caption: [{caption}]")
    (world.out / "settings.json").unlink()
    if wrong_first:
        with pytest.raises(UserError, match="holds responses of other settings"):
            world.call("--num-samples", 1, "--template", tmp_path / "own.txt")
        with pytest.raises(UserError, match="holds responses of other settings"):
            world.call("--num-samples", 1, "--top-p", 0.5)
    assert world.call("--num-samples", 1) == 0
    assert world.judged == rows


def test_a_data_file_with_any_name_is_read(world, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.json")
    odd.write_text(json.dumps([*world.rows, {"bad": 1}]))
    assert world.call("--num-samples", 1, "--data", odd) == 0
    assert len(world.judged) == 6
    assert world.read("failed")[0]["where"].endswith("caf?.json:4")


def understanding(context, **other):
    return {
        "task": "image_understanding", "text": "How many cats?", "label": 2,
        "candidates": ["Three.", "Two, one of them black."], "context": context,
    } | other  # fmt: skip


def test_questions_about_an_image_show_that_image_and_both_answers(world, server):
    world.rows = [understanding(["0a.png"]), understanding(["0b.png"], text="Dogs?")]
    assert world.call("--num-samples", 1, "--min-parsed", 0) == 0
    assert [len(entry["images"]) for entry in server.log()] == [1] * 4
    texts = {entry["text"] for entry in server.log()}
    assert any("Answer 1: [Two, one of them black.]\nAnswer 2: [Three.]" in text for text in texts)
    for row in world.judged:
        assert row["task"] == "image_understanding"
        assert row["conversations"][0]["value"].startswith("<image>You are shown an image")
        assert len(row["images"]) == 1
        assert row["label"] == (2 if row["order"] == "given" else 1)
    files = [world.out / f"{name}.jsonl" for name in ("correct", "incorrect", "unusable")]
    report = check_files([file for file in files if file.stat().st_size], world.media, workers=1)
    assert report.problems == []


def test_the_task_flag_holds_for_records_without_a_task(world):
    plain = {"text": "a cat", "candidates": ["0a.png", "0b.png"], "label": 1}
    world.rows = [plain, understanding(["0a.png"]), raw_row("a dog", ["0a.png", "0b.png"])]
    flags = ["--num-samples", 1, "--orders", "given"]
    assert world.call(*flags, "--task", "image_generation", "--source", "comparison") == 0
    assert len(world.judged) == 1
    wrong, unread = world.read("failed")
    assert "of task image_understanding, not of --task image_generation" in wrong["detail"]
    assert unread["reason"] == "bad_record"
    with pytest.raises(UserError, match="unknown --task 'images'; known: image_generation"):
        world.call("--task", "images")


def test_videos_that_are_no_frames_are_told_what_makes_frames(world):
    world.rows = [{"task": "video_generation", "text": "a", "candidates": ["a", "b"], "label": 1}]
    with pytest.raises(
        UserError, match=r"two lists of two or more frames.*prepare_data\.py convert makes"
    ):
        world.call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "the label is missing"),
        ({"task": "judging"}, "'task' is 'judging'; known: "),
        ({"candidates": ["a"]}, "'candidates' must be a list of two"),
        ({"candidates": ["a", " "]}, "two answers"),
        ({"candidates": ["a", "<image>"]}, "a text of the record holds <image>; a trainer"),
        ({"candidates": 3}, "'candidates' must be a list of two"),
        ({"context": []}, "'context' must name the image"),
        ({"context": "0a.png"}, "'context' must be a list"),
        ({"context": ["../../x.png"]}, "leads out of the image root"),
        ({"text": 7}, "'text' must be"),
    ],
)
def test_a_record_of_our_own_form_that_is_wrong_is_named(world, change, message):
    plain = {"text": "a cat", "candidates": ["0a.png", "0b.png"], "label": 1}
    world.rows = [plain | {"task": "image_generation"}, understanding(["0a.png"]) | change]
    assert world.call("--num-samples", 1) == 0
    (failed,) = world.read("failed")
    assert message in failed["detail"]
    assert failed["where"].endswith(":2")


def test_a_link_that_leaves_the_image_root_is_refused_within_the_media_root(world):
    picture(world.media / "other/secret.png")
    (world.media / "images/link.png").symlink_to(world.media / "other/secret.png")
    world.rows.append(raw_row("a link", ["0a.png", "link.png"]))
    assert world.call("--num-samples", 1) == 0
    assert [entry["reason"] for entry in world.read("failed")] == ["escapes"] * 2


# --- prompts --------------------------------------------------------------------------------------


def test_a_template_may_hold_the_placeholders_where_stage_1_had_them(world, tmp_path, server):
    template = "<image>\n<image>\nJudge them. Text Caption: [{caption}]"
    (tmp_path / "own.txt").write_text(template + "\n")
    assert world.call("--num-samples", 1, "--template", tmp_path / "own.txt") == 0
    row = world.judged[0]
    assert row["conversations"][0]["value"].startswith("<image>\n<image>\nJudge them.")
    assert row["template_hash"] == template_hash(template)
    assert world.summary["template_hashes"] == {"image_generation": template_hash(template)}


def test_text_between_media_is_sent_between_them():
    content = json.loads(
        wire.content('<image>\n<image>\nJudge "it"', [[b'"data:a"'], [b'"data:', b'b"']])
    )
    url = {"type": "image_url"}
    assert content == [
        url | {"image_url": {"url": "data:a"}},
        {"type": "text", "text": "\n"},
        url | {"image_url": {"url": "data:b"}},
        {"type": "text", "text": '\nJudge "it"'},
    ]


def test_a_template_with_too_few_placeholders_is_an_error(world, tmp_path):
    (tmp_path / "own.txt").write_text("<image> Text Caption: [{caption}]")
    with pytest.raises(UserError, match="the template has 1 <image>, but 2 are shown"):
        world.call("--template", tmp_path / "own.txt")
    # If the template fits some records, the others are bad.
    (tmp_path / "own.txt").write_text("<image> {question} {answer_1} {answer_2}")
    world.rows = [understanding(["0a.png"]), understanding(["0a.png", "0b.png"])]
    flags = ["--num-samples", 1, "--min-parsed", 0]
    assert world.call("--template", tmp_path / "own.txt", *flags) == 0
    (failed,) = world.read("failed")
    assert "the template has 1 <image>, but 2 are shown" in failed["detail"]


# --- media by address -----------------------------------------------------------------------------


def test_media_by_address_are_files_below_the_root_with_the_same_pixels(world, server):
    picture(world.media / "images/0a.png", size=600)
    picture(world.media / "images/a b%20ü.png")
    world.rows = [raw_row("large", ["0a.png", "0b.png"]), raw_row("odd", ["a b%20ü.png", "1a.png"])]
    flags = ["--num-samples", 1, "--orders", "given", "--image-max-pixels", 10_000]
    assert world.call(*flags) == 0
    inline = {entry["caption"]: entry["images"] for entry in server.log()}
    server.configure()
    assert world.call(*flags, "--out", world.out.with_name("files"), "--media", "file") == 0
    probe, *asked = server.log()
    assert probe["max_tokens"] == 1
    assert len(asked) == 2
    for entry in asked:
        for url, data in zip(entry["images"], inline[entry["caption"]], strict=True):
            assert url.startswith("file:///")
            path = Path(unquote(urlparse(url).path))
            assert path.is_relative_to(world.media)
            assert path.read_bytes() == base64.b64decode(data.partition("base64,")[2])


def test_a_server_that_reads_no_files_is_explained(world, server):
    server.configure(
        faults=[{"kind": "status", "status": 400, "message": "Cannot load local files"}]
    )
    with pytest.raises(UserError, match="--media file") as error:
        world.call("--media", "file")
    assert f"--allowed-local-media-path {world.media}" in str(error.value)
    assert "Cannot load local files" in str(error.value)
    assert len(server.log()) == 1


# --- a dry run ------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_request_and_the_counts_and_leaves_everything_alone(world, server):
    assert world.call("--num-samples", 1, "--limit", 1) == 0
    before = {path: path.read_bytes() for path in world.out.iterdir()}
    server.configure()
    world.rows.append({"bad": "record"})
    done = world.run("--num-samples", 3, "--dry-run")
    assert done.returncode == 0, done.stderr
    decoder = json.JSONDecoder()
    counts, end = decoder.raw_decode(done.stdout)
    request = json.loads(done.stdout[end:])
    assert counts["comparisons"] == 3
    assert counts["bad_records"] == 1
    assert (counts["expected"], counts["judged"], counts["to_ask"]) == (24, 2, 16)
    assert counts["requests"] == 6
    assert (request["n"], request["max_tokens"]) == (2, 2048)
    first, _, text = request["messages"][0]["content"]
    assert "bytes of images/0a.png" in first["image_url"]["url"]
    assert text["text"].endswith("Text Caption: [caption 0]")
    assert len(done.stdout) < 4_000
    assert server.log() == []
    assert {path: path.read_bytes() for path in world.out.iterdir()} == before


def test_a_dry_run_needs_no_server_and_makes_no_folder(world):
    done = world.run("--dry-run", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 0, done.stderr
    assert not world.out.exists()


# --- the core alone -------------------------------------------------------------------------------


@asynccontextmanager
async def sender_for(
    server: MockServer, sampling: wire.Sampling, read_url: ReadUrl
) -> AsyncGenerator[FleetSender, None]:
    """A sender to one server, with four requests in flight."""
    fleet = Fleet(stop := asyncio.Event())
    async with Server(server.url, "none") as api:
        fleet.add(Member(api, sampling, Capacity(4), Outage(api, sampling, 1, stop, print)))
        with FleetSender(fleet, read_url) as sender:
            yield sender


def test_media_are_read_only_for_requests_that_are_about_to_be_sent(server):
    server.configure(latency=0.02)
    read, most_ahead = Counter(), 0

    def read_url(path: str) -> list[bytes]:
        read["media"] += 1
        return [b'"data:x"']

    async def main() -> int:
        nonlocal most_ahead
        sampling = wire.Sampling("mock", 1.0, 1.0, 100, 30, 60, 3)
        done = 0
        requests = (
            wire.Request(
                Comparison("image_generation", f"c{n}", ("a", "b"), 1), f"{n}", "given", 0, 1, n,
                f"<image><image>[c{n}]", ("a", "b"),
            )
            for n in range(300)
        )  # fmt: skip
        async with sender_for(server, sampling, read_url) as sender:
            async for batch in send_requests(requests, sender):
                done += len(batch)
                most_ahead = max(most_ahead, read["media"] // 2 - done)
        return done

    assert asyncio.run(main()) == 300
    assert most_ahead <= 4 + PREPARED_REQUESTS


def test_answers_that_came_with_an_error_are_handed_out_before_it(server):
    server.configure()

    def read_url(path: str) -> list[bytes]:
        if path == "9":
            time.sleep(0.3)
            raise OSError(28, "No space left on device")
        return [b'"data:x"']

    async def main() -> int:
        sampling = wire.Sampling("mock", 1.0, 1.0, 100, 30, 60, 3)
        done = 0
        requests = (
            wire.Request(
                Comparison("image_generation", f"c{n}", ("a", "b"), 1), f"{n}", "given", 0, 1, n,
                f"<image>[c{n}]", (f"{n}",),
            )
            for n in range(10)
        )  # fmt: skip
        async with sender_for(server, sampling, read_url) as sender:
            try:
                async for batch in send_requests(requests, sender):
                    done += len(batch)
                    await asyncio.sleep(0.6)  # by then all others have come, and the error
            except OSError as error:
                return done if "No space" in str(error) else -1
        return -1

    assert asyncio.run(main()) == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--concurrency", "many"], "--concurrency many: a number from 1 to 900, or auto"),
        (["--concurrency", "0"], "a number from 1 to 900, or auto"),
        (["--concurrency", "901"], "a number from 1 to 900, or auto"),
        (["--media", "links"], "'links' is not one of inline, file"),
        (["--base-url", "http://me:secret@host/v1"], "must not hold a name, password or query"),
        (["--max-pause", "-1"], "--max-pause must be at least 0"),
    ],
)
def test_mistakes_are_named(world, flags, message):
    with pytest.raises(UserError) as error:
        world.call(*flags)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_every_task_has_its_fields():
    for task in TASKS.values():
        assert all("{" + name + "}" in task.template for name in task.fields)
