"""`scripts/derive_template.py`: where the caption is cut out, what deviates, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.records import conversation, token_fault
from cot_reward.rows.templates import Derived, derive, describe, write_template
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER
from cot_reward.tasks.prompts import fill, template_hash
from helpers.environments import REPO
from helpers.rows import write_rows
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

WORDING = "<image><image>Look at both pictures. Which one fits?\nText Caption: {caption}"
TEMPLATE = "Look at both pictures. Which one fits?\nText Caption: {caption}"
CAPTIONS = ["a red cat", "two dogs, running", "rain on a window"]


def row(text: str, /, **other: Any) -> dict[str, Any]:
    return {
        "conversations": conversation(text, "<think>...</think>"),
        "images": [f"{number}.png" for number in range(text.count("<image>"))],
        "videos": ["a.mp4", "b.mp4"][: text.count("<video>")],
    } | other


def filled(wording: str, captions: list[str]) -> list[dict[str, Any]]:
    return [row(fill(wording, {"caption": caption})) for caption in captions]


def derived(folder: Path, rows: list[Any], task: str = "image_generation") -> Derived:
    return derive([write_rows(folder / "rows.json", rows)], task)


def many(count: int, wording: str = WORDING) -> list[dict[str, Any]]:
    return filled(wording, [f"{number} cats in the {number * 7} rain" for number in range(count)])


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_lists_and_lines_are_read(tmp_path, name):
    found = derive([write_rows(tmp_path / name, filled(WORDING, CAPTIONS))])
    assert found.text == TEMPLATE
    assert (found.front, found.captions, found.deviating) == ("<image><image>", CAPTIONS, [])
    assert found.rows == 3


def test_rows_of_several_files_count_together(tmp_path):
    files = [
        write_rows(tmp_path / f"{number}.json", filled(WORDING, [caption]))
        for number, caption in enumerate(CAPTIONS)
    ]
    assert derive(files).captions == CAPTIONS


@pytest.mark.parametrize("name", ["problem", "prompt"])
def test_prompts_may_be_strings(tmp_path, name):
    prompts = [fill(WORDING, {"caption": caption}) for caption in CAPTIONS]
    rows = [{name: prompt, "images": ["a", "b"]} for prompt in prompts]
    assert derived(tmp_path, rows).text == TEMPLATE


def test_of_several_turns_the_first_human_one_counts(tmp_path):
    rows = filled(WORDING, CAPTIONS)
    for each in rows:
        each["conversations"].insert(0, {"from": "system", "value": "Be fair."})
        each["conversations"] += conversation("And why?", "Because.")
    assert derived(tmp_path, rows).text == TEMPLATE


@pytest.mark.parametrize(
    ("template", "captions"),
    [
        (TEMPLATE, ["a cat.", "a dog.", "a car."]),
        (TEMPLATE, ["a cat on a white background", "a dog on a white background"]),
        (TEMPLATE, ["Photo: a cat", "Photo: a dog"]),
        (TEMPLATE, ["[a] cat", "[a] dog"]),
        (TEMPLATE, ["cat", "a cat", "the cat"]),
        (TEMPLATE, ["a cat. It sits on it.", "a dog. It sits on it.", "a car"]),
        ("Judge.\nText Caption: [{caption}]", ["a cat.", "a dog."]),
        ("Judge.\nText Caption: [{caption}]", ["[a]", "[b]"]),
        ("Judge.\nText Caption: [ {caption} ]\nAnswer [1] or [2].", ["a cat", "a bat", "a rat"]),
        ('Judge.\nText Caption: "{caption}" (a caption)', ["a cat's", "a dog's"]),
        ("Judge.\nText Caption: <text>{caption}</text>", ["a cat", "a dog"]),
        ("Judge.\nText Caption:\n\n{caption}\n\nAnswer now.", ["a cat", "a bat"]),
        ("Judge.\nText Caption: {caption} Now judge both of them.", ["a cat.", "a dog."]),
        ("Judge.\nText Caption: {caption} ", ["a cat", "a dog"]),
        ("Text Caption: made up\nText Caption: {caption}", ["a cat", "a dog"]),
        ("Which fits?\nCaption: {caption}\nAnswer:", ["a cat", "a car"]),
        ('Which fits "{caption}" better?', ["a cat", "a car"]),
        ("Which fits (Image 1 or 2) this text, at 10:30: {caption}", ["a cat", "a car"]),
        ("比较两张图片\uff0c哪一张更好\uff1f\n文字描述\uff1a{caption}", ["一只红色的猫", "一只狗"]),
        ("请比较。\n文字\uff1a【{caption}】\n请回答。", ["一只猫", "一只狗"]),
        ("Text Caption: {caption}。请比较两张图片。", ["一只猫", "两只狗"]),
        ('Say {"answer": 1}, {} or {{x}}\nText Caption: {{caption}}', ["{a} cat", "dog {0}"]),
    ],
)
def test_what_captions_share_by_chance_stays_in_them(tmp_path, template, captions):
    found = derived(tmp_path, filled("<image><image>Look. " + template, captions))
    # A full stop at the end of all captions may be theirs as well.
    given_back = "。" if "。请比较" in template else ""
    assert found.text == "Look. " + template.replace("}。请", "}请")
    assert found.captions == [caption + given_back for caption in captions]


def test_the_caption_may_come_first(tmp_path):
    wording = "<image><image>{caption}\nWhich picture fits?"
    found = derived(tmp_path, filled(wording, ["a cat", "two cats"]))
    assert (found.text, found.captions) == (wording, ["a cat", "two cats"])


def test_a_named_caption_locates_itself(tmp_path):
    wording = "<image><image>Is a a cat, or is {caption} here in the picture?"
    captions = ["a", "a cat", "a car on a mat"]
    rows = [
        row(fill(wording, {"caption": caption}), prompt=f" {caption}\n") for caption in captions
    ]
    found = derived(tmp_path, rows)
    assert found.text == wording.removeprefix("<image><image>")
    assert found.captions == captions


def test_a_prompt_that_is_not_in_the_text_names_no_caption(tmp_path):
    rows = [each | {"prompt": "judge"} for each in filled(WORDING, CAPTIONS)]
    assert derived(tmp_path, rows).text == TEMPLATE


def test_a_named_caption_that_is_elsewhere_deviates(tmp_path):
    captions = [f"{number} cats" for number in range(200)]
    rows = [row(fill(WORDING, {"caption": text}), prompt=text) for text in captions]
    rows[7] = row(fill(WORDING, {"caption": "[a cat]"}), prompt="a cat")
    found = derived(tmp_path, rows)
    assert found.deviating == [
        (f"{tmp_path}/rows.json:8", "'[a cat]' is in the caption's place, and 'prompt' is 'a cat'")
    ]


@pytest.mark.parametrize(
    "wording",
    [
        "<image>\n<image>\nWhich fits?\nText Caption: {caption}",
        "<image><image>\nWhich fits?\nText Caption: {caption}",
        "One: <image>, two: <image>. Which fits?\nText Caption: [{caption}]",
        "<image>Which fits?\nText Caption: {caption}\n<image>",
        "Which fits?\nText Caption: {caption} <image><image>",
        "Which fits?\n<image><image>{caption}",
    ],
)
def test_placeholders_that_do_not_simply_come_first_are_kept(tmp_path, wording):
    found = derived(tmp_path, filled(wording, ["a cat", "a dog", "a red car"]))
    assert (found.text, found.front) == (wording, "")
    assert "kept" in describe(found, TASKS["image_generation"])


def test_the_frames_of_videos_are_images_in_front(tmp_path):
    frames = WORDING.replace("<image><image>", "<image>" * 16)
    found = derived(tmp_path, filled(frames, CAPTIONS), "video_generation")
    assert (found.text, found.front) == (TEMPLATE, "<image>" * 16)
    with pytest.raises(UserError, match="share 16 <image>, and task image_generation shows two im"):
        derived(tmp_path, filled(frames, CAPTIONS))
    odd = WORDING.replace("<image><image>", "<image>" * 3)
    with pytest.raises(UserError, match=r"share 3 <image>.*as many frames of one video"):
        derived(tmp_path, filled(odd, CAPTIONS), "video_generation")
    videos = filled(WORDING.replace("image", "video"), CAPTIONS)
    with pytest.raises(UserError, match="the prompts show <video>, and the client shows a"):
        derived(tmp_path, videos, "video_generation")


def test_an_edit_has_its_instruction_in_the_place_of_a_caption(tmp_path):
    edits = WORDING.replace("<image><image>", "<image>" * 3)
    found = derived(tmp_path, filled(edits, CAPTIONS), "image_editing")
    assert found.text == TEMPLATE.replace("{caption}", "{instruction}")
    assert found.front == "<image>" * 3
    with pytest.raises(UserError, match=r"share 2 <image>.*shows the source and two edits"):
        derived(tmp_path, filled(WORDING, CAPTIONS), "image_editing")


def test_a_row_with_other_media_than_it_shows_deviates(tmp_path):
    rows = many(200)
    rows[4]["images"] = ["a.png"]
    (deviating,) = derived(tmp_path, rows).deviating
    assert deviating == (f"{tmp_path}/rows.json:5", "2 <image> in the texts, but 1 in 'images'")
    with pytest.raises(UserError, match="share 1 <image>, and task image_generation shows two"):
        derived(tmp_path, many(3, WORDING.replace("<image><image>", "<image>")))


def test_few_deviating_rows_are_listed_and_change_nothing(tmp_path):
    rows = [*many(400), *many(2, "<image><image>Quite another text: {caption}")]
    rows[10:10] = [{"id": 7}, row("<image><image>")]
    found = derived(tmp_path, rows)
    assert found.text == TEMPLATE
    assert [where.rpartition(":")[2] for where, _ in found.deviating] == ["11", "12", "403", "404"]
    text = describe(found, TASKS["image_generation"])
    assert "404 rows, 400 of them with one wording in common; 400 different captions" in text
    assert "4 of 404 rows (0.99%) deviate:" in text
    assert "rows.json:11: no 'conversations', and no string in 'problem' or 'prompt', " in text
    assert "rows.json:403: '<image><image>Quite another text: 0" in text
    assert "where others have '<image><image>Look at both" in text


PLAIN, BRACKETED = "Look. Text Caption: {caption}", "Look. Text Caption: [{caption}]"


@pytest.mark.parametrize(
    ("ours", "other", "difference"),
    [
        (
            PLAIN,
            "Gaze. Text Caption: {caption}",
            "'Gaze. Text Caption: 0 cats in the 0 rain' where",
        ),
        (PLAIN, "Look. Caption: {caption}", "'Look. Caption: 0 cats in the 0 rain' where others"),
        (PLAIN, "{caption}", "'0 cats in the 0 rain' where others have 'Look. Text Caption: '"),
        (BRACKETED, PLAIN, "have 'Look. Text Caption: ['"),
        (BRACKETED, BRACKETED[:-1], "0 cats in the 0 rain' where others have ']'"),
        (BRACKETED, BRACKETED + "\nSo?", "0 rain]\\nSo?' where others have ']'"),
        (
            PLAIN + "\nNow judge them.",
            PLAIN + "\nBegin.",
            "\\nBegin.' where others have '\\nNow",
        ),
        (
            "Look here: {caption}",
            "Look there: {caption}",
            "there: 0 cats in the 0 rain' where others",
        ),
    ],
)
def test_many_deviating_rows_are_an_error_and_nothing_is_written(tmp_path, ours, other, difference):
    path = write_rows(tmp_path / "rows.jsonl", [*many(50, ours), *many(2, other)])
    out = tmp_path / "template.txt"
    with pytest.raises(UserError) as caught:
        write_template([path], "image_generation", str(out))
    first, *lines = str(caught.value).splitlines()
    assert "2 of 52 rows (3.85%) deviate, more than 1%, so nothing is written" in first
    assert [line.partition(": ")[0] for line in lines] == [f"  {path}:51", f"  {path}:52"]
    assert difference in lines[0]
    assert not out.exists()


@pytest.mark.parametrize("count", [2, 3])
def test_wordings_of_which_none_is_most_frequent_are_an_error(tmp_path, count):
    wordings = [f"Two pictures:\n{name} them. Text Caption: {{caption}}" for name in "ABC"[:count]]
    rows = [each for wording in wordings for each in many(40, wording)]
    with pytest.raises(UserError, match=rf"lead to 'Text Caption:': {count}, .*\n.*json:41: "):
        derived(tmp_path, rows)


def test_a_marker_in_some_of_the_rows_is_an_error(tmp_path):
    rows = [
        *many(20, "Pictures:\nJudge. Text Caption: {caption}"),
        *many(40, "Pictures:\n{caption}"),
    ]
    with pytest.raises(UserError, match=r"lead to 'Text Caption:': 1, .*\n.*rows\.json:21: "):
        derived(tmp_path, rows)


def test_named_captions_may_begin_with_the_marker(tmp_path):
    captions = ["Text Caption: a cat", "Text Caption: a dog"]
    rows = [row("<image><image>Judge. " + text, prompt=text) for text in captions]
    found = derived(tmp_path, rows)
    assert (found.text, found.captions) == ("Judge. {caption}", captions)
    longer = "Text Caption: a car. Text Caption: a bus"
    rows.append(row("<image><image>Judge. " + longer, prompt=longer))
    with pytest.raises(UserError, match=r"lead to 'Text Caption:': 2, .* its own rows$"):
        derived(tmp_path, rows)


def test_the_marker_may_follow_the_caption(tmp_path):
    wording = "<image><image>Here: {caption}\nJudge by this Text Caption:"
    assert derived(tmp_path, filled(wording, CAPTIONS)).captions == CAPTIONS


def test_what_most_captions_share_by_chance_stays_in_them(tmp_path):
    captions = [f"a cat {number}" + ".\n" * (number % 3 > 0) for number in range(60)]
    found = derived(tmp_path, filled(WORDING, captions))
    assert (found.text, found.captions) == (TEMPLATE, captions)


def test_rows_without_a_caption_deviate(tmp_path):
    found = derived(tmp_path, many(300) + filled(WORDING, [" ", "a <video> b"]))
    assert [why.partition(", after")[0] for _, why in found.deviating] == [
        "no caption, or a special token in it"
    ] * 2


def test_one_of_four_rows_shrinks_nothing(tmp_path):
    rows = filled(WORDING, CAPTIONS)
    rows.insert(1, row("<image><image>Something else entirely: a cat"))
    with pytest.raises(UserError, match=r"1 of 4 rows \(25.00%\) deviate.*\n.*rows\.json:2: "):
        derived(tmp_path, rows)


def test_at_most_ten_deviating_rows_are_listed(tmp_path):
    with pytest.raises(UserError) as caught:
        derived(tmp_path, [*many(50), *[{"id": number} for number in range(25)]])
    assert str(caught.value).count("\n") == 11
    assert str(caught.value).endswith("and 15 more")


def test_long_wordings_are_shown_in_part(tmp_path):
    rows = [*many(3, "<image><image>" + "So. " * 5000 + "Text Caption: {caption}"), *many(2)]
    with pytest.raises(UserError, match=r"So\. So\. ") as caught:
        derived(tmp_path, rows)
    assert len(str(caught.value)) < 1000


def test_a_broken_line_costs_a_row_and_a_broken_list_everything(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", many(150))
    path.write_text(path.read_text() + "{broken\n")
    ((where, why),) = derive([path]).deviating
    assert where == f"{path}:151"
    assert "not valid JSON" in why
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(many(150))[:-20])
    with pytest.raises(UserError, match=r"rows\.json:1: not a complete JSON list"):
        derive([path])
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        derive([tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (filled(WORDING, ["a cat"]), "1 rows with 1 different prompts; .* give more rows"),
        (filled(WORDING, ["a cat"] * 9), "9 rows with 1 different prompts"),
        ([{"id": 1}], r"1 rows with 0 .*\n.*rows\.json:1: no 'conversations'"),
        (filled("<image><image>{caption}", CAPTIONS), "nothing in common but '<image><image>'"),
        (filled("Compare it with {caption}", CAPTIONS), "nothing shows where the caption begins"),
        (filled("Which (1 or 2) fits {caption} (best)?", CAPTIONS), "nothing shows where"),
        (filled("{caption}", CAPTIONS), "nothing in common but ''"),
        (filled(WORDING + "\n", CAPTIONS), "share line breaks at their end"),
        (filled("Look.\r\n" + WORDING[14:], CAPTIONS), "share carriage returns"),
    ],
)
def test_what_cannot_be_derived_is_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=r"rows\.json: .*" + message):
        derived(tmp_path, rows)


def test_a_wording_with_the_field_in_it_is_refused(tmp_path):
    rows = [row("Put it in {caption}.\nText Caption: " + caption) for caption in CAPTIONS]
    with pytest.raises(UserError, match=r"the wording itself holds \{caption\}"):
        derived(tmp_path, rows)


def test_captions_may_hold_the_field_the_marker_and_carriage_returns(tmp_path):
    captions = ["a {caption}", "a Text Caption: b", "\\1 a\r\nb", *CAPTIONS]
    found = derived(tmp_path, filled(WORDING, captions))
    assert (found.text, found.captions) == (TEMPLATE, captions)


def test_tasks_are_named(tmp_path):
    rows = filled(WORDING, CAPTIONS)
    with pytest.raises(UserError, match=r"'image_gener'. Did you mean 'image_generation'\?"):
        derived(tmp_path, rows, "image_gener")
    with pytest.raises(UserError, match="question, answer_1, answer_2, and only templates with"):
        derived(tmp_path, rows, "image_understanding")


def _free(text: str) -> bool:
    return not (token_fault(text) or CAPTION_MARKER in text or "{caption}" in text)


WORDINGS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60).filter(_free)
CAPTION_TEXTS = (
    st.text(st.characters(codec="utf-8"), max_size=40).map(str.strip).filter(bool).filter(_free)
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    head=WORDINGS,
    around=st.sampled_from([("", ""), ("[", "]"), (" [", "]\nNow judge."), ("\n\n", "\n\nEnd")]),
    front=st.sampled_from(["<image><image>", "<image>\n<image>\n", "1: <image> 2: <image> "]),
    captions=st.lists(CAPTION_TEXTS, min_size=3, max_size=30, unique=True),
)
def test_the_template_filled_with_the_captions_gives_every_prompt(
    tmp_path_factory, head, around, front, captions
):
    folder = tmp_path_factory.mktemp("rows")
    before, after = around
    prompts = [front + head + CAPTION_MARKER + before + text + after for text in captions]
    found = derived(folder, [row(prompt) for prompt in prompts])
    assert found.text.count("{caption}") == 1
    assert [
        found.front + fill(found.text, {"caption": caption}) for caption in found.captions
    ] == prompts
    assert CAPTION_MARKER in found.text
    if before.startswith(" ["):
        assert found.captions == captions


def test_the_command(tmp_path):
    path = write_rows(
        tmp_path / "rows.json", filled(WORDING, ["a cat.", "a dog.", "a " + "b" * 300])
    )
    out = tmp_path / "new" / "template.txt"

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, REPO / "scripts/derive_template.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    done = command(path, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_text() == TEMPLATE + "\n"
    for line in (
        "3 rows, 3 of them with one wording in common; 3 different captions",
        "<image><image> left out: the client puts them in front",
        f"caption: after {TEMPLATE.removesuffix('{caption}')[-40:]!r}, at the end",
        "  the first: 'a cat.'",
        f"  the longest other: 'a {'b' * 48} ... {'b' * 50}'",
        "  all begin with 'a '; if that is wording, move it out of the field",
        f"template: {len(TEMPLATE)} characters, hash {template_hash(TEMPLATE)}",
        f"{out}: written; give it to the client with --template {out}",
    ):
        assert line in done.stdout.splitlines()
    done = command(path, "--out", "-")
    assert (done.returncode, done.stdout) == (0, TEMPLATE + "\n")
    assert "3 rows, 3 of them" in done.stderr

    done = command(path, "--taks", "video_generation")
    assert done.returncode == 2
    assert "unknown flag '--taks'. Did you mean '--task'?" in done.stderr
    done = command()
    assert (done.returncode, "DATA" in done.stderr) == (2, True)


# 2 seconds on an idle machine; hours if each row were compared with each.
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_fifty_thousand_rows(tmp_path):
    wording = "<image><image>" + "Look at both, and say what you see. " * 50 + WORDING[14:]
    path = write_rows(tmp_path / "rows.jsonl", many(50_000, wording))
    assert derive([path]).rows == 50_000
