"""Rows of every form become questions; what cannot be read is told, and nothing is guessed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.grpo.questions import Questions, read_questions
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.records import comparison_key
from cot_reward.rows.file_flags import held_out_files
from cot_reward.rows.held_out import HeldOut
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import template_hash
from helpers.pictures import picture
from helpers.rows import judged_row, raw_row, write_lines, write_rows
from helpers.texts import cot

TEMPLATE = "Judge: [{caption}]"
ASKED = "<image><image>Judge: [{}]"


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name, colour in {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200)}.items():
        picture(tmp_path / f"media/{name}.png", colour)
        picture(tmp_path / f"media/raw/{name}.png", colour)
    return tmp_path / "media"


def read(media: Path, *files: Path, templates: Any = None, **settings: Any) -> Questions:
    names = [str(file) for file in files]
    made = GrpoSettings(data_path=names, image_folder=str(media), **settings)
    return read_questions(names, made, templates or dict.fromkeys(TASKS, TEMPLATE))


def asked(questions: Questions) -> list[tuple[str, tuple[str, ...], int]]:
    return [(each.prompt, each.images, each.label) for each in questions.rows]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_raw_comparison_is_asked_in_both_orders(media: Path, tmp_path: Path, name: str) -> None:
    rows = write_rows(tmp_path / name, [raw_row("a cat", ["a.png", "b.png"], 2)])
    found = read(media, rows, image_root=str(media / "raw"))
    prompt = ASKED.format("a cat")
    assert asked(found) == [
        (prompt, ("raw/a.png", "raw/b.png"), 2),
        (prompt, ("raw/b.png", "raw/a.png"), 1),
    ]
    assert found.templates == {"image_generation": TEMPLATE}
    one = read(media, rows, image_root=str(media / "raw"), orders="swapped")
    assert asked(one) == asked(found)[1:]


def test_judged_rows_are_their_comparisons(media: Path, tmp_path: Path) -> None:
    """Right, wrong and unusable texts of one comparison, in both orders: two questions."""
    own = {"template_hash": template_hash(TEMPLATE)}
    rows = [
        judged_row(cot(), 1, verdict="correct", answer=1, **own),
        judged_row(cot(answer=2), 1, verdict="incorrect", answer=2, sample=1, **own),
        judged_row(
            cot(), 2, images=("b.png", "a.png"), order="swapped", verdict="incorrect", answer=1,
            **own,
        ),
    ]  # fmt: skip
    unusable = [judged_row("?", 1, verdict="unparsed", **own)]
    found = read(
        media,
        write_lines(tmp_path / "incorrect.jsonl", rows),
        write_lines(tmp_path / "unusable.jsonl", unusable),
    )
    prompt = ASKED.format("a cat")
    assert asked(found) == [
        (prompt, ("a.png", "b.png"), 1),
        (prompt, ("b.png", "a.png"), 2),
    ]
    assert found.repeated == 6


def test_judged_rows_of_another_prompt_are_refused(media: Path, tmp_path: Path) -> None:
    row = judged_row(cot(), verdict="correct", answer=1, template_hash="1" * 16)
    rows = write_lines(tmp_path / "correct.jsonl", [row])
    with pytest.raises(UserError, match=r"template_hash 1{16}\).*name that prompt with --template"):
        read(media, rows)


@pytest.mark.parametrize(
    ("problem", "solution"),
    [
        ("<image><image>Which one? [a cat]", "Image 2 is better"),
        ("Which one? [a cat]", " Image 2 is better\n"),
        ("Which one? [a cat]", "<answer>Image 2 is better</answer>"),
        ("Which one? [a cat]", cot(answer=2)),
    ],
)
def test_published_rows_keep_their_prompt(
    media: Path, tmp_path: Path, problem: str, solution: str
) -> None:
    row = {"problem": problem, "solution": solution, "images": ["a.png", "b.png"]}
    found = read(media, write_lines(tmp_path / "grpo.jsonl", [row]), image_root=str(media / "raw"))
    prompt = "<image><image>Which one? [a cat]"
    assert asked(found) == [
        (prompt, ("raw/a.png", "raw/b.png"), 2),
        (prompt, ("raw/b.png", "raw/a.png"), 1),
    ]
    assert not found.templates


def test_two_answers_in_a_prompt_are_asked_as_they_stand(media: Path, tmp_path: Path) -> None:
    row = {
        "problem": "<image>What is it? Answer 1: [cat] Answer 2: [dog]",
        "solution": "Answer 1 is better",
        "images": ["a.png"],
    }
    rows = write_lines(tmp_path / "grpo.jsonl", [row])
    assert asked(read(media, rows)) == [(row["problem"], ("a.png",), 1)]
    with pytest.raises(UserError, match="they cannot be swapped"):
        read(media, rows, orders="swapped")


def test_questions_about_answers_are_swapped_by_the_template(media: Path, tmp_path: Path) -> None:
    row = {
        "task": "image_understanding", "text": "What is it?", "candidates": ["a cat", "a dog"],
        "label": 1, "context": ["a.png"],
    }  # fmt: skip
    templates = {name: task.template for name, task in TASKS.items()}
    found = read(media, write_lines(tmp_path / "rows.jsonl", [row]), templates=templates)
    given, swapped = found.rows
    assert given.images == swapped.images == ("a.png",)
    assert (given.label, swapped.label) == (1, 2)
    assert "Answer 1: [a cat]" in given.prompt
    assert "Answer 1: [a dog]" in swapped.prompt


PUBLISHED = {"problem": "Which? [a]", "solution": "Image 1 is better", "images": ["a.png", "b.png"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PUBLISHED | {"solution": "Image 1"}, "'solution' is 'Image 1'; it must be an answer"),
        (PUBLISHED | {"solution": "I think Image 1 is better"}, "it must be an answer such as"),
        (PUBLISHED | {"solution": "<answer>1</answer>"}, "it must be an answer such as"),
        (PUBLISHED | {"solution": "Video 1"}, "'Image 1 is better', 'Video 1 is better', 'Answer"),
        (
            PUBLISHED | {"solution": "Video 1 is better", "images": ["a.png", "b.png", "c.png"]},
            "as many frames of each video",
        ),
        (PUBLISHED | {"solution": cot() + cot(answer=2)}, "it must be an answer such as"),
        (PUBLISHED | {"solution": 1}, "'solution' must be a string, not 1"),
        (PUBLISHED | {"images": "a.png"}, "'images' a list of paths"),
        (PUBLISHED | {"images": ["a.png"]}, "fewer than two media"),
        (PUBLISHED | {"images": ["a.png", "a.png"]}, "both media are the same"),
        (PUBLISHED | {"images": ["a.png", "gone.png"]}, "gone.png: no such file"),
        (PUBLISHED | {"images": ["a.png", "../b.png"]}, "leads out of the image root"),
        (PUBLISHED | {"images": ["a.png", "/b.png"]}, "it is absolute"),
        (PUBLISHED | {"images": ["a.png", "broken.png"]}, "not an image"),
        (PUBLISHED | {"videos": ["a.mp4"]}, "the row has videos"),
        (PUBLISHED | {"problem": "<image>Which?"}, "1 <image> in the prompt, but 2"),
        (PUBLISHED | {"problem": "Which <|im_end|>?"}, "a model reads this as a control token"),
        (raw_row("a cat", ["a.png", "a.png"]), "both candidates are the same"),
        (raw_row("", ["a.png", "b.png"]), "the caption or question is empty"),
        (raw_row("a cat", ["a.png"]), "'images' must be a list of two paths"),
        ("[1]", "not an object"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_costs_only_itself(
    media: Path, tmp_path: Path, row: Any, message: str
) -> None:
    (media / "broken.png").write_text("no picture")
    good = raw_row("a dog", ["b.png", "c.png"])
    rows = write_rows(tmp_path / "rows.json", [good, row])
    with pytest.raises(UserError) as caught:
        read(media, rows)
    assert f"{rows}: 1 of 2 rows cannot be used:\n  row 2: " in str(caught.value)
    assert message in str(caught.value)
    found = read(media, rows, skip_bad_rows=True)
    assert len(found.rows) == 2
    assert [problem.startswith(f"{rows}:2: ") for problem in found.problems] == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "video_generation", "candidates": ["a.mp4", "b.mp4"]},
            "two lists of two or more frames",
        ),
        ({"task": None}, "'task' is None"),
        ({"label": None}, "the label is missing"),
    ],
)
def test_a_bad_row_of_our_own_form(
    media: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good = {
        "task": "image_generation", "text": "x", "candidates": ["a.png", "b.png"], "label": 1,
    }  # fmt: skip
    rows = write_lines(tmp_path / "rows.jsonl", [good, good | changes])
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        read(media, rows)
    assert len(read(media, rows, skip_bad_rows=True).rows) == 2


def test_labels_that_contradict_each_other_are_bad(media: Path, tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", [raw_row("a cat", ["a.png", "b.png"], 1)])
    rows = [raw_row("a dog", ["a.png", "b.png"]), raw_row("a cat", ["b.png", "a.png"], 1)]
    other = write_lines(tmp_path / "other.jsonl", rows)
    with pytest.raises(
        UserError, match=r"line 2: .*one\.jsonl:1 has the same question with the ot"
    ):
        read(media, one, other)
    # The same comparison turned around, with its label turned around, is no contradiction.
    rows[1] = raw_row("a cat", ["b.png", "a.png"], 2)
    found = read(media, one, write_lines(other, rows))
    assert len(found.rows) == 4
    assert found.repeated == 2


def test_labels_and_ties(media: Path, tmp_path: Path) -> None:
    plain = {"task": "image_generation", "text": "x", "candidates": ["a.png", "b.png"]}
    rows = [plain | {"label": 0}, plain | {"text": "y", "label": 1}, plain | {"label": "tie"}]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="it is not known which candidate a label"):
        read(media, file, skip_bad_rows=True)
    found = read(media, file, labels=["0=1", "1=2", "tie=tie"], orders="given")
    assert [each.label for each in found.rows] == [1, 2]
    assert found.ties == 1


def test_nothing_left_and_files_that_are_not_there(media: Path, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [PUBLISHED | {"solution": "?"}])
    with pytest.raises(UserError, match=r"is left, 1 bad rows.*the first: .*bad\.jsonl:1"):
        read(media, bad, skip_bad_rows=True)
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        read(media, tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="--image_folder gone: no such folder"):
        read_questions([], GrpoSettings(data_path=[], image_folder="gone"), {})
    with pytest.raises(UserError, match="is not inside --media-root"):
        read(media, bad, image_root=str(tmp_path))


def test_rows_of_no_known_form_are_named_with_their_file(media: Path, tmp_path: Path) -> None:
    pair = {"problem": "x", "chosen": cot(), "rejected": cot(), "images": ["a.png", "b.png"]}
    rows = write_lines(tmp_path / "dpo.jsonl", [pair])
    with pytest.raises(UserError, match=r"dpo\.jsonl: 1 of 1 rows .*\n  line 1: no adapter knows"):
        read(media, rows)


def test_unknown_names_are_the_users_mistake(media: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [raw_row("a cat", ["a.png", "b.png"])])
    with pytest.raises(UserError, match=r"^unknown --adapter 'upstraem'"):
        read(media, rows, adapter="upstraem", skip_bad_rows=True)
    with pytest.raises(UserError, match=r"^unknown --task 'images'"):
        read(media, rows, task="images", skip_bad_rows=True)


def test_a_digest_tells_pictures_and_labels_apart(media: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [raw_row("a cat", ["a.png", "b.png"])])
    before = read(media, file).digests
    assert len(set(before)) == 2
    assert read(media, file).digests == before
    picture(media / "a.png", (1, 2, 3))
    after = read(media, file).digests
    assert not set(before) & set(after)


def test_a_limit_keeps_the_first(media: Path, tmp_path: Path) -> None:
    rows = [raw_row(f"cat {number}", ["a.png", "b.png"]) for number in range(4)]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    assert read(media, file, limit=3).rows == read(media, file).rows[:3]
    assert len(read(media, file, limit=3).dataset()) == 3


def test_a_judged_row_that_was_changed_is_bad(media: Path, tmp_path: Path) -> None:
    row = judged_row(cot(), verdict="correct", answer=1, template_hash=template_hash(TEMPLATE))
    row["id"] = comparison_key("image_generation", "another", (), ("a.png", "b.png"))
    with pytest.raises(UserError, match="is not the key of its prompt and media"):
        read(media, write_lines(tmp_path / "rows.jsonl", [row]))


def test_one_question_is_told_from_another_by_what_is_asked(media: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [raw_row("a cat", ["a.png", "b.png"])])
    first = read(media, file).rows[0]
    assert replace(first, label=2).asked == first.asked
    assert replace(first, prompt="x").asked != first.asked


@pytest.mark.parametrize("order", ["given", "swapped"])
def test_held_out_comparisons_are_not_asked(media: Path, tmp_path: Path, order: str) -> None:
    images = ["a.png", "b.png"] if order == "given" else ["b.png", "a.png"]
    held = write_lines(tmp_path / "held.jsonl", [raw_row("a cat", images, 1)])
    rows = [raw_row("a cat", ["a.png", "b.png"], 2), raw_row("a dog", ["a.png", "c.png"], 1)]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    held_out = HeldOut(held_out_files([str(held)], [], media / "raw", media), media)
    made = GrpoSettings(
        data_path=[str(data)], image_folder=str(media), image_root=str(media / "raw")
    )
    found = read_questions([str(data)], made, dict.fromkeys(TASKS, TEMPLATE), held_out)
    assert {question.prompt for question in found.rows} == {ASKED.format("a dog")}
    assert (found.held_out, held_out.met[str(held)].comparisons) == (1, 1)


def test_published_rows_about_held_out_comparisons_are_not_asked(
    media: Path, tmp_path: Path
) -> None:
    prompt = "<image><image>Judge them. Text Caption: [a cat]"
    row = {"problem": prompt, "solution": "Image 1 is better", "images": ["a.png", "b.png"]}
    data = write_lines(tmp_path / "rows.jsonl", [row, row | {"images": ["a.png", "c.png"]}])
    held = write_lines(tmp_path / "held.jsonl", [raw_row("a cat", ["a.png", "b.png"], 1)])
    held_out = HeldOut(held_out_files([str(held)], [], media, media), media)
    made = GrpoSettings(data_path=[str(data)], image_folder=str(media))
    found = read_questions([str(data)], made, dict.fromkeys(TASKS, TEMPLATE), held_out)
    assert found.held_out == 1
    assert {question.images for question in found.rows} == {("a.png", "c.png"), ("c.png", "a.png")}


def test_one_root_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="--exclude-image-root names 3 folders for 2 files"):
        GrpoSettings(data_path=["x"], exclude=["a", "b"], exclude_image_root=["x", "y", "z"])
