"""Captions in prompts without the marker: found exactly, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.records import comparison_key, conversation
from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.responses import prompt_and_text
from helpers.merging import RIGHT, WRONG, run
from helpers.rows import read_lines, write_lines

# All chosen texts here answer the same, and evening that out would leave one pair.
UNEVEN = "--no-balance-positions"
CAPTIONS = [
    "a red cat on a mat", "a red dog on a mat", "a green boat, 12:30", "two men (old)", "雨中的猫",
]  # fmt: skip
IN_THE_MIDDLE = {
    "corner brackets": "<image><image>请比较两张图片,它们的说明是「{}」。先思考,再回答。",
    "quotation marks": '<image><image>Which image fits "{}" better? Think, then answer.',
    "curled quotation marks": "<image>\n<image>\nThe prompt is “{}”.\n\nScore both, 1 to 10.",
    "square brackets": "Judge <image> and <image> by: [{}]\nWrite 'Image 1 is better', or not.",
    "a tag": "<image><image>Compare.\n<caption>{}</caption>\nThink step by step.",
}


def response(template: str, caption: str, text: str = RIGHT, **other: Any) -> dict[str, Any]:
    prompt = template.replace("{}", caption)
    return {"conversations": conversation(prompt, text), "images": ["a.png", "b.png"]} | other


def captions_of(path: Path, rows: list[dict[str, Any]]) -> FileCaptions:
    return FileCaptions(write_lines(path / "rows.jsonl", rows), lambda row: prompt_and_text(row)[0])


@pytest.mark.parametrize("template", IN_THE_MIDDLE.values(), ids=IN_THE_MIDDLE)
def test_a_caption_in_the_middle_of_the_prompts_is_found(tmp_path: Path, template: str) -> None:
    find = captions_of(tmp_path, [response(template, caption) for caption in CAPTIONS])
    for caption in [*CAPTIONS, "a caption that only a later row has"]:
        assert find(template.replace("{}", caption)) == caption
    # Prompts with the marker need no others.
    assert find("Judge. Text Caption: [a fox]") == "a fox"
    with pytest.raises(ValueError, match=r"no caption: .* where others have"):
        find("<image><image>Another wording: 「a cat」.")


@pytest.mark.parametrize("template", IN_THE_MIDDLE.values(), ids=IN_THE_MIDDLE)
def test_pairs_of_such_rows_have_the_key_of_their_comparison(tmp_path: Path, template: str) -> None:
    right = [response(template, caption) for caption in CAPTIONS]
    # The other side's file begins with other captions.
    wrong = [response(template, caption, WRONG) for caption in ["a hat", *CAPTIONS[::-1]]]
    pairs, summary = run(tmp_path, right, wrong, UNEVEN)
    keys = {
        comparison_key("image_generation", caption, (), ("a.png", "b.png")) for caption in CAPTIONS
    }
    assert {pair["id"] for pair in pairs} == keys
    assert summary["incorrect_side"] == {"rows": 6, "used": 5, "no_partner": 1}
    # Held-out rows of the same prompts keep their comparisons out.
    held_out = [response(template, caption) for caption in [*CAPTIONS[:2], "a fox", "a cow"]]
    path = write_lines(tmp_path / "held_out.jsonl", held_out)
    pairs, summary = run(tmp_path, right, wrong, UNEVEN, "--exclude", path)
    assert len(pairs) == 3
    assert summary["excluded_comparisons"] == {str(path): 2}


@pytest.mark.parametrize(
    ("template", "captions", "message"),
    [
        # Nothing but words around it: where it ends is a guess.
        ("<image><image>Judge these: {}", CAPTIONS, "no quotation marks or brackets"),
        ("<image><image>Judge {} well", CAPTIONS, "no quotation marks or brackets"),
        ("<image><image>Judge 「{}」.", CAPTIONS[:2], "has 2 different prompts"),
        ("<image><image>Judge 「{}」.", CAPTIONS[:1] * 9, "has 1 different prompts"),
        ("<image><image>Judge.", CAPTIONS, "has 1 different prompts"),
    ],
)
def test_what_is_not_exact_is_an_error_of_the_row(
    tmp_path: Path, template: str, captions: list[str], message: str
) -> None:
    rows = [response(template, caption) for caption in captions]
    find = captions_of(tmp_path, rows)
    with pytest.raises(ValueError, match=f"no caption: the prompt has no 'Text.*{message}"):
        find(prompt_and_text(rows[0])[0])
    with pytest.raises(UserError, match=f"rows are bad.*\n.*no caption: .*{message}"):
        run(tmp_path, rows, [response(template, captions[0], WRONG)])


def test_two_wordings_in_one_file_are_told(tmp_path: Path) -> None:
    templates = [IN_THE_MIDDLE["corner brackets"]] * 5 + [IN_THE_MIDDLE["quotation marks"]] * 3
    rows = [response(template, f"caption {n}") for n, template in enumerate(templates)]
    with pytest.raises(ValueError, match=r"do not share one wording: .* a file of its own"):
        captions_of(tmp_path, rows)(prompt_and_text(rows[0])[0])


def test_rows_that_deviate_later_are_bad_rows(tmp_path: Path) -> None:
    template = IN_THE_MIDDLE["corner brackets"]
    right = [response(template, f"caption {n}") for n in range(1200)]
    right.append(response("<image><image>Judge: 「{}」", "a cat"))
    wrong = [response(template, f"caption {n}", WRONG) for n in range(9)]
    pairs, _ = run(tmp_path, right, wrong, UNEVEN)
    assert len(pairs) == 9
    (bad,) = read_lines(tmp_path / "out/bad_rows.jsonl")
    assert bad["line"] == 1201
    assert "where others have" in bad["reason"]


def test_rows_with_a_key_need_no_caption(tmp_path: Path) -> None:
    """Also where the prompts would give another one."""
    own = {"id": comparison_key("image_generation", "[a cat]", (), ("a.png", "b.png"))}
    right = [response("<image><image>Judge 「{}」.", "a cat", **own)]
    wrong = [response("<image><image>Judge 「{}」.", "a cat", WRONG, **own)]
    (pair,), _ = run(tmp_path, right, wrong)
    assert pair["id"] == own["id"]


def test_broken_rows_and_a_pipe_are_no_matter(tmp_path: Path) -> None:
    template = IN_THE_MIDDLE["corner brackets"]
    path = tmp_path / "rows.jsonl"
    lines = ["torn {", '{"a": 1}', '{"conversations": 3}']
    lines += [json.dumps(response(template, caption)) for caption in CAPTIONS]
    path.write_text("\n".join(lines))
    find = FileCaptions(path, lambda row: prompt_and_text(row)[0])
    assert find(template.replace("{}", "a fox")) == "a fox"
    with pytest.raises(ValueError, match="has 0 different prompts"):
        FileCaptions(Path("-"), lambda row: "")("a fox")
