"""Templates: filled, checked, and identified by their hashes."""

from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import (
    check_template,
    check_template_of_model,
    fill,
    mixed_templates,
    read_templates,
    template_hash,
)


def values(task, text="X"):
    return dict.fromkeys(task.fields, text)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_tasks_own_template_is_complete_and_shows_its_answers(task):
    check_template(task.template, task)
    filled = fill(task.template, values(task))
    assert "{" not in filled
    for answer in task.answers:
        assert answer in filled
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in filled


def test_fill_replaces_every_field_everywhere():
    assert fill("{a} and {b} and {a}", {"a": "1", "b": "2"}) == "1 and 2 and 1"


def test_what_is_filled_in_is_not_filled_again():
    assert fill("{a} {b}", {"a": "{b}", "b": "{a}"}) == "{b} {a}"
    assert fill("[{caption}]", {"caption": "{caption} {0} {}"}) == "[{caption} {0} {}]"
    assert fill("[{caption}]", {"caption": r"\1 \g<0> %s $x"}) == r"[\1 \g<0> %s $x]"


def test_other_braces_stay():
    template = 'Answer as {"score": 1} for {caption}, {other}, {{x}}'
    assert fill(template, {"caption": "a"}) == 'Answer as {"score": 1} for a, {other}, {{x}}'
    assert fill(template, {}) == template


def test_a_template_without_a_field_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no \{caption\}"):
        check_template("judge these", TASKS["image_generation"])
    with pytest.raises(ValueError, match=r"no \{answer_2\}"):
        check_template("{question} {answer_1}", TASKS["image_understanding"])


def test_a_template_holds_no_special_token():
    check_template("<image> <image> {caption}", TASKS["image_generation"])
    for token in ("<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<audio>", "<video>"):
        with pytest.raises(ValueError, match="the template holds <"):
            check_template(token + "{caption}", TASKS["image_generation"])


def test_the_hash_stands_for_the_exact_text():
    assert template_hash("a") == template_hash("a")
    assert len({template_hash(text) for text in ("a", "a ", "A", "é")}) == 4
    assert len(template_hash("a")) == 16


def test_two_templates_for_one_task_are_a_warning():
    assert mixed_templates({"image_generation": {"a"}, "image_understanding": {"b"}}) == ""
    assert "image_generation: a, b" in mixed_templates({"image_generation": ["b", "a"]})


OWN = {name: task.template for name, task in TASKS.items()}


def test_files_replace_our_own_templates_task_by_task(tmp_path: Path) -> None:
    one, other = tmp_path / "a=b.txt", tmp_path / "c.txt"
    one.write_text("one\n")
    other.write_text("other\n")
    named = f"video_generation={other}"
    assert read_templates([]) == OWN
    assert read_templates([str(one)]) == dict.fromkeys(TASKS, "one")
    assert read_templates([named]) == OWN | {"video_generation": "other"}
    assert read_templates([named, str(one)]) == {
        name: "other" if name == "video_generation" else "one" for name in TASKS
    }
    for files, message in (
        ([str(one), str(other)], "all tasks already has a file"),
        ([named, named], "video_generation already has a file"),
        ([f"video_generatoin={other}"], "no task is called .* Did you mean 'video_generation'"),
        ([str(tmp_path / "gone.txt")], "cannot be read"),
        ([f"image_editing={tmp_path / 'gone'}"], "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_templates(files)


def test_a_models_prompt_speaks_of_its_own_task_only(tmp_path: Path) -> None:
    """A model that was trained on one task may be sampled on others, each with its prompt."""
    for name, task in TASKS.items():
        (tmp_path / "template.txt").write_text(task.template + "\n")
        check_template_of_model(str(tmp_path), OWN)
        changed = OWN | {name: "Changed. " + task.template}
        with pytest.raises(UserError, match=f"another prompt for {name} than this run's"):
            check_template_of_model(str(tmp_path), changed)
    # A prompt that names no medium may be of images or of videos.
    (tmp_path / "template.txt").write_text("Which is better? [{caption}]")
    with pytest.raises(UserError, match="another prompt for image_generation"):
        check_template_of_model(str(tmp_path), OWN)
    check_template_of_model(str(tmp_path), {"image_editing": OWN["image_editing"]})
