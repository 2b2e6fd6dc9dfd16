"""--structured-output: what is sent, and servers whose texts would only look forced."""

import json
import re

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.fixed_settings import run_hash
from cot_reward.judge.grammar import grammar
from cot_reward.tasks import TASKS
from helpers.rows import raw_row
from helpers.server import MockServer

ON = ("--structured-output", "on")
IMAGES = TASKS["image_generation"]
FREE_TEXT = {"kind": "text", "text": "Both are fine."}


def sent(server) -> set[str]:
    return {entry["structured_outputs"]["regex"] for entry in server.log()}


def test_every_request_has_the_form_and_every_text_is_of_it(world, server):
    assert world.call("--num-samples", 8) == 0
    verdicts = world.summary["verdicts"]
    assert verdicts["unparsed"] > 0
    server.configure()
    world.out = world.out.with_name("forced")
    assert world.call("--num-samples", 8, *ON, "--out", world.out) == 0
    assert sent(server) == {grammar("think", IMAGES)}
    assert len(server.log()) == 6
    # A text that is cut stays cut.
    assert world.summary["verdicts"]["truncated"] == verdicts["truncated"] > 0
    assert "unparsed" not in world.summary["verdicts"]
    assert world.summary["settings"]["structured_output"] == "on"
    server.configure()
    assert world.call("--num-samples", 8, *ON, "--out", world.out) == 0
    assert server.log() == []


def test_without_the_flag_nothing_is_sent(world, server):
    assert world.call("--num-samples", 1) == 0
    assert not any("structured_outputs" in entry for entry in server.log())


def test_each_task_of_a_run_has_its_own_form(world, server):
    images = world.rows[0]["images"]
    world.rows = [
        {"task": "image_generation", "text": "an image", "candidates": images, "label": 1},
        {"task": "video_generation", "text": "a video", "label": 2,
         "candidates": [images, world.rows[1]["images"]]},
        {"task": "image_understanding", "text": "what?", "context": images[:1],
         "candidates": ["a cat", "a dog"], "label": 1},
    ]  # fmt: skip
    assert world.call("--num-samples", 8, *ON) == 0
    assert sent(server) == {grammar("think", TASKS[row["task"]]) for row in world.rows}
    for entry in server.log():
        (noun,) = set(re.findall(r"write exactly '(\w+) 1", entry["text"]))
        assert f"{noun} 1 is better" in entry["structured_outputs"]["regex"]
    assert world.summary["verdicts"].keys() <= {"correct", "incorrect", "truncated"}
    assert len(world.judged) == 3 * 2 * 8


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"structured": "ignores"}, "it ignores structured_outputs, which vLLM has"),
        ({"structured": "reasoning"}, "start it without --reasoning-parser"),
        ({"structured": "silent"}, "does not tell the text of its prompt"),
        ({"refuses": ["structured_outputs"]}, "does not take --structured-output (HTTP 400"),
    ],
)
def test_a_server_that_does_not_force_whole_texts_is_refused(world, server, probe, words):
    server.configure(probe=probe)
    with pytest.raises(UserError) as error:
        world.call("--num-samples", 1, *ON)
    assert words in str(error.value)
    assert server.log() == []
    assert not (world.out / "settings.json").exists()
    assert world.call("--num-samples", 1) == 0


def test_every_server_of_a_fleet_must_force(world, server):
    server.configure()
    with MockServer() as other:
        other.configure(probe={"structured": "ignores"})
        flags = ["--num-samples", 1, *ON, "--base-url", server.url, other.url]
        with pytest.raises(UserError, match=f"{other.url} does not force a form"):
            world.call(*flags)
        assert server.log() == other.log() == []


def test_a_server_that_does_not_answer_now_is_not_taken_for_one_that_forces(world, server):
    server.configure(probe={"status": 500})
    with pytest.raises(UserError, match="did not answer the first question"):
        world.call("--num-samples", 1, *ON)
    assert server.log() == []


def test_a_chat_template_that_opens_the_block_is_found_out(world, server):
    server.configure(probe={"structured": "opened"})
    assert world.call("--num-samples", 8, *ON) == 0
    assert sent(server) == {grammar("think", IMAGES, opened=True)}
    assert world.summary["verdicts"].keys() <= {"correct", "incorrect", "truncated"}
    whole = sum(row["verdict"] != "truncated" for row in world.judged)
    assert world.summary["restored"]["template_opening"] == whole > 0
    world.out = world.out.with_name("answer")
    flags = ["--form", "answer", "--num-samples", 1, *ON, "--out", world.out]
    with pytest.raises(UserError, match=r"enable_thinking\": false"):
        world.call(*flags)


def test_texts_that_left_the_form_after_all_are_told(world, server, capsys):
    # Ended by itself, whichever request meets it.
    server.configure(faults=[FREE_TEXT | {"times": 1, "reason": "stop"}])
    assert world.call("--num-samples", 1, *ON) == 3
    assert (
        "1 responses do not have the form that the server was to force" in capsys.readouterr().err
    )
    assert world.call("--num-samples", 1, *ON) == 3


def test_json_of_another_prompt_is_not_forced(world, server, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text('Answer in JSON with "winner" and "ratings". Text Caption: [{caption}]')
    flags = ["--form", "json", "--num-samples", 1, *ON]
    for dry in ([], ["--dry-run"]):
        with pytest.raises(UserError, match='shows no "categories"'):
            world.call(*flags, "--template", own, *dry)
    assert server.log() == []


def test_the_folder_is_bound_to_the_setting_and_old_folders_go_on(world, server):
    assert world.call("--num-samples", 1) == 0
    path = world.out / "settings.json"
    with pytest.raises(UserError, match="structured_output: 'off' there, 'on' now"):
        world.call("--num-samples", 1, *ON)
    # A folder from before the flag existed.
    old = json.loads(path.read_text())
    assert old.pop("structured_output") == "off"
    path.write_text(json.dumps(old))
    server.configure()
    assert world.call("--num-samples", 1) == 0
    assert server.log() == []
    assert run_hash(old) == run_hash(old | {"structured_output": "off"})
    assert run_hash(old) != run_hash(old | {"structured_output": "on"})


def test_a_dry_run_shows_the_form(world, capsys):
    world.rows = [raw_row("a cat", ["0a.png", "0b.png"])]
    assert world.call("--num-samples", 1, "--dry-run", *ON) == 0
    shown = capsys.readouterr().out
    assert json.dumps(grammar("think", IMAGES), ensure_ascii=False) in shown
