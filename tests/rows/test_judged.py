"""Judged rows as comparisons: the same keys, labels and media as in the pass that wrote them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cot_reward.inference.inputs import read_comparisons
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.settings import InferenceSettings
from cot_reward.records import FORMS, ORDERS, Comparison, Form, Order, conversation
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown_media, template_hash
from helpers.rows import raw_row, write_lines

OTHER = "Compare.\nScore both pictures (1 to 10).\n\nText Caption: [{caption}]\nGo."
NO_MARKER = "<image> and <image>: which of them shows {caption}? Think, then answer."
GENERATION = Comparison(
    "image_generation", "a cat, at 12:30 [on a mat]", ("set/1.png", "set/2.png"), 1, "set/train"
)
QUESTION = Comparison(
    "image_understanding", "What is this?", ("A seven.", "A cross: two lines."), 2, "set/vqa",
    ("set/1.png",),
)  # fmt: skip


def judged(
    comparison: Comparison, order: Order, template: str | None = None, **changes: Any
) -> dict[str, Any]:
    """The row of a right answer to the comparison in this order."""
    template = template or TASKS[comparison.task].template
    _, label = comparison.presented(order)
    row = {
        "conversations": conversation(render(comparison, order, template), "text"),
        "images": list(shown_media(comparison, order)), "videos": [], "id": comparison.key,
        "task": comparison.task, "source": comparison.source, "order": order, "sample": 0,
        "label": label, "answer": label, "verdict": "correct", "coherence": "coherent",
        "finish_reason": "stop", "model": "m", "template_hash": template_hash(template),
    }  # fmt: skip
    return row | changes


def read(
    path: Path, *rows: Mapping[str, Any], templates: Mapping[str, str] | None = None
) -> tuple[list[Comparison], list[dict[str, Any]], int]:
    """Comparisons, bad records and the number of duplicates of a file with these rows."""
    write_lines(path / "rows.jsonl", rows)
    with Ledger(None) as ledger:
        read_comparisons(ledger, [path / "rows.jsonl"], path, templates=templates)
        return [x.comparison for x in ledger], list(ledger.bad()), ledger.duplicate_count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("comparison", [GENERATION, QUESTION], ids=["generation", "question"])
@pytest.mark.parametrize("given", [True, False], ids=["own template", "built-in template"])
def test_a_row_gives_its_comparison_back(
    tmp_path: Path, order: Order, comparison: Comparison, given: bool
) -> None:
    templates = {comparison.task: "{caption}"} if given else None
    found, bad, _ = read(tmp_path, judged(comparison, order), templates=templates)
    assert found == [comparison]
    assert bad == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("template", [OTHER, NO_MARKER])
def test_a_template_that_nobody_names_is_found_out_by_the_key(
    tmp_path: Path, template: str, order: Order
) -> None:
    others = [
        Comparison("image_generation", text, ("set/1.png", "set/2.png"), 2, "s")
        for text in ("a dog", "red", "Which of them shows a fox? Think, then answer.", "a, b. C")
    ]
    rows = [judged(c, order, template) for c in (GENERATION, *others)]
    found, bad, _ = read(tmp_path, *rows)
    assert found == [GENERATION, *others]
    assert bad == []


def test_rows_about_one_comparison_are_one_and_no_duplicates(tmp_path: Path) -> None:
    rows = [judged(GENERATION, order, sample=n) for order in ORDERS for n in range(3)]
    found, bad, duplicates = read(tmp_path, *rows)
    assert found == [GENERATION]
    assert (bad, duplicates) == ([], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["set/1.png", "set/3.png"]}, "not the key of its prompt and media"),
        ({"id": "0" * 64}, "not the key of its prompt and media"),
        ({"task": "video_generation"}, "not the key|placeholder"),
        ({"label": 2}, "one of them was changed"),
        ({"verdict": "incorrect"}, "one of them was changed"),
        ({"label": 3}, "'label' must be 1 or 2"),
        ({"order": "turned"}, "'order' must be given or swapped"),
        ({"images": ["../1.png", "set/2.png"]}, "leads out"),
        ({"images": ["set/1.png"]}, "fewer than two media"),
        (
            {"conversations": conversation("<image><image>Text Caption: [a cat<|im_end|>]", "x")},
            r"the prompt holds <\|im_end\|>; a model reads",
        ),
    ],
)
def test_a_changed_row_is_bad_and_costs_only_itself(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = [judged(QUESTION, "given"), judged(GENERATION, "given") | change]
    found, bad, _ = read(tmp_path, *rows)
    assert found == [QUESTION]
    assert len(bad) == 1
    assert re.search(message, bad[0]["detail"]), bad[0]["detail"]


def test_many_rows_that_do_not_fit_are_refused_in_a_moment(tmp_path: Path) -> None:
    wrong = [judged(GENERATION, "given", OTHER, id=f"{n:064x}") for n in range(300)]
    found, bad, _ = read(tmp_path, judged(QUESTION, "given"), *wrong)
    assert found == [QUESTION]
    assert len(bad) == 300


def test_two_labels_for_one_comparison_are_a_conflict(tmp_path: Path) -> None:
    turned = Comparison(GENERATION.task, GENERATION.text, GENERATION.candidates, 2, "s")
    found, bad, _ = read(
        tmp_path, judged(QUESTION, "given"), judged(GENERATION, "given"), judged(turned, "swapped")
    )
    assert found == [QUESTION]
    assert [row["reason"] for row in bad] == ["conflicting_label"]


def test_judged_and_raw_files_have_image_roots_of_their_own(tmp_path: Path) -> None:
    write_lines(tmp_path / "judged.jsonl", [judged(GENERATION, "swapped")])
    raw = raw_row(GENERATION.text, ["1.png", "2.png"], label=1)
    other = raw_row("a dog", ["1.png", "2.png"], label=1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/raw.json").write_text(json.dumps([raw, other]))
    files = [tmp_path / "judged.jsonl", tmp_path / "set/raw.json"]
    with Ledger(None) as ledger:
        read_comparisons(ledger, files, tmp_path, [tmp_path, tmp_path / "set"])
        found = [x.comparison for x in ledger]
        assert ledger.duplicate_count == 1  # the raw row, beside the judged one
    assert [c.text for c in found] == [GENERATION.text, "a dog"]
    assert found[0] == GENERATION
    assert found[1].candidates == ("set/1.png", "set/2.png")
    assert found[1].source == "set/raw"


def test_image_roots_that_do_not_fit_the_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 folders for 3 files of --data"):
        InferenceSettings(
            data=[Path("a"), Path("b"), Path("c")], out=tmp_path,
            image_root=[tmp_path, tmp_path / "x"],
        )  # fmt: skip


COMPARISONS = {
    "image_generation": Comparison("image_generation", "a {cat}", ("a.png", "b.png"), 1),
    "video_generation": Comparison(
        "video_generation", "a cat", (("a0.jpg", "a1.jpg"), ("b0.jpg", "b1.jpg")), 2
    ),
    "image_editing": Comparison("image_editing", "red", ("a.png", "b.png"), 1, context=("s.png",)),
    "image_understanding": Comparison(
        "image_understanding", "What?", ("x", "y"), 1, context=("a.png",)
    ),
    "video_understanding": Comparison(
        "video_understanding", "What?", ("x", "y"), 2, context=("a0.jpg", "a1.jpg")
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_prompts_of_every_task_and_form_are_read_back(
    tmp_path: Path, task: str, form: Form, order: Order
) -> None:
    comparison = COMPARISONS[task]
    row = judged(comparison, order, TASKS[task].templates[form], form=form)
    (found,), bad, _ = read(tmp_path, row)
    assert bad == []
    assert (found.key, found.presented("given")) == (comparison.key, comparison.presented("given"))
    assert shown_media(found, "swapped") == shown_media(comparison, "swapped")


def test_an_unknown_form_is_a_bad_row(tmp_path: Path) -> None:
    good = judged(GENERATION, "given")
    odd = judged(COMPARISONS["image_editing"], "given", form="yaml")
    _, (bad,), _ = read(tmp_path, good, odd)
    assert "unknown form 'yaml'; known: think, json, answer" in bad["detail"]
