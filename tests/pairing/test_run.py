"""The merger: which rows become DPO pairs, and what the summary says."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cot_reward.dpo.pairs import template_warning
from cot_reward.errors import UserError
from cot_reward.judge import judge
from cot_reward.pairing.audit import audit
from cot_reward.records import PAIR_FIELDS, PLACEHOLDERS, comparison_key, conversation
from cot_reward.rows.few_pairs import few_pairs_warning
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from helpers.merging import RIGHT, WRONG, run
from helpers.rows import judged_row, raw_row, read_lines, write_lines
from helpers.texts import cot, thought
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

TASK = TASKS["image_generation"]


def test_a_right_and_a_wrong_text_about_the_same_presentation_are_a_pair(tmp_path):
    pairs, summary = run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, model="model-b")])
    (pair,) = pairs
    assert list(pair) == list(PAIR_FIELDS)
    assert all(type(pair[name]) is kind for name, kind in PAIR_FIELDS.items())
    row = judged_row(RIGHT)
    assert pair["problem"] == row["conversations"][0]["value"]
    assert (pair["chosen"], pair["rejected"]) == (RIGHT, WRONG)
    assert (pair["id"], pair["images"], pair["order"]) == (row["id"], ["a.png", "b.png"], "given")
    assert (pair["chosen_model"], pair["rejected_model"]) == ("model-a", "model-b")
    assert (summary["pairs"], summary["same_model"], summary["cross_model"]) == (1, 0, 1)
    assert summary["chosen_answer"] == {"1": 1, "2": 0}
    assert {"python", "duckdb"} <= summary["versions"].keys()


@pytest.mark.parametrize(
    "other",
    [
        judged_row(WRONG, caption="a dog"),
        judged_row(WRONG, images=("a.png", "c.png")),
        judged_row(RIGHT, 2, images=("b.png", "a.png"), order="swapped"),
    ],
)
def test_texts_about_something_else_are_no_pair(tmp_path, other):
    with pytest.raises(UserError, match="no pair: 1 usable correct and 1 usable incorrect"):
        run(tmp_path, [judged_row(RIGHT)], [other])


def test_rows_are_judged_again_whatever_they_say_of_themselves(tmp_path):
    said = {"verdict": "correct", "coherence": "coherent", "answer": 1}
    chosen = [
        judged_row(RIGHT),
        judged_row(cot((6, 7), (8, 7), 1), sample=1, **said),
        judged_row(cot((7, 7), (7, 7), 1), sample=2, **said),
        judged_row(cot(totals=(99, 1)), sample=3, **said),
        judged_row(WRONG, sample=4, **said),
        judged_row("I prefer Image 1", sample=5, **said),
        judged_row(RIGHT, sample=6, **said | {"finish_reason": "length"}),
    ]
    pairs, summary = run(tmp_path, chosen, [judged_row(WRONG)], "--pairs-per-comparison", 9)
    assert [pair["chosen"] for pair in pairs] == [RIGHT]
    assert summary["correct_side"] == {
        "rows": 7, "used": 1, "chosen_contradicts": 1, "chosen_tie": 1, "chosen_wrong_sum": 1,
        "judged_incorrect": 1, "judged_unparsed": 1, "judged_truncated": 1,
    }  # fmt: skip


def test_incoherent_texts_only_when_asked(tmp_path):
    chosen, rejected = cot((6, 7), (8, 7), 1), cot((8, 7), (6, 7), 2)
    with pytest.raises(UserError, match="'chosen_contradicts': 1"):
        run(tmp_path, [judged_row(chosen)], [judged_row(rejected)])
    pairs, _ = run(tmp_path, [judged_row(chosen)], [judged_row(rejected)], "--allow-incoherent")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == (chosen, rejected)
    with pytest.raises(UserError, match="'rejected_contradicts': 1"):
        run(
            tmp_path,
            [judged_row(RIGHT)],
            [judged_row(rejected)],
            "--rejected-coherence",
            "coherent",
        )


def test_texts_without_totals_may_be_chosen(tmp_path):
    pairs, _ = run(tmp_path, [judged_row(thought("plain"))], [judged_row(WRONG)])
    assert pairs[0]["chosen"] == thought("plain")


def test_texts_of_two_templates_are_warned_of_by_merger_and_trainer(tmp_path, capsys):
    _, summary = run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)])
    assert capsys.readouterr().err == few_pairs_warning(1) + "\n"
    assert template_warning(str(tmp_path / "out/train.jsonl"), None) == ""
    assert summary["template_hashes"] == {"image_generation": ["0" * 16]}
    run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, template_hash="1" * 16)])
    assert "differently worded prompts" in capsys.readouterr().err
    warning = template_warning(str(tmp_path / "out/train.jsonl"), None)
    assert f"image_generation: {'0' * 16}, {'1' * 16}" in warning
    # Rows of another project have no summary beside them.
    assert template_warning(str(tmp_path / "train.jsonl"), None) == ""


def test_a_wrong_text_to_another_prompt_is_not_paired(tmp_path, capsys):
    def asked(prompt, *texts):
        return [
            judged_row(text, conversations=conversation(prompt, text), sample=n)
            for n, text in enumerate(texts)
        ]

    one, two = "<image><image>Judge: [a cat]", "<image><image>Which one is better? [a cat]"
    wrong, other = (cot((6, 7), (8, n), 2) for n in (8, 9))
    pairs, summary = run(tmp_path, asked(one, RIGHT), asked(two, WRONG, wrong) + asked(one, other))
    assert [(pair["problem"], pair["rejected"]) for pair in pairs] == [(one, other)]
    assert summary["incorrect_side"] == {"rows": 3, "other_prompt": 2, "used": 1}
    assert "0 correct and 2 incorrect texts are in no pair, because" in capsys.readouterr().err
    # One text under two prompts is two, and finds its partner.
    pairs, _ = run(tmp_path, asked(one, RIGHT), asked(two, WRONG) + asked(one, WRONG))
    assert [(pair["problem"], pair["rejected"]) for pair in pairs] == [(one, WRONG)]
    with pytest.raises(UserError, match="'other_prompt': 1"):
        run(tmp_path, asked(one, RIGHT), asked(two, WRONG))


@pytest.mark.parametrize(
    "prompt",
    [
        "<image>\n<image>\nJudge:  [a cat]",
        "Judge: [a cat] <image><image>",
        "<image><image>Judge: [a cat]\n",
    ],
)
def test_white_space_and_the_place_of_the_media_are_no_other_prompt(tmp_path, prompt):
    wrong = judged_row(WRONG, conversations=conversation(prompt, WRONG))
    pairs, _ = run(tmp_path, [judged_row(RIGHT)], [wrong])
    assert [pair["problem"] for pair in pairs] == ["<image><image>Judge: [a cat]"]


def test_contradictory_labels_drop_the_comparison_and_list_it(tmp_path):
    # One file says that a.png is preferred, the other that b.png is.
    right = [judged_row(RIGHT, 1), judged_row(RIGHT, 1, caption="a dog")]
    wrong = [judged_row(RIGHT, 2), judged_row(WRONG, 1, caption="a dog")]
    pairs, summary = run(tmp_path, right, wrong)
    assert [pair["id"] for pair in pairs] == [right[1]["id"]]
    assert summary["contradictory_labels"] == [right[0]["id"]]


def test_contradictory_labels_are_seen_across_the_orders(tmp_path):
    right = [judged_row(RIGHT, 1), judged_row(RIGHT, 1, caption="a dog")]
    swapped = judged_row(RIGHT, 1, images=("b.png", "a.png"), order="swapped")
    wrong = [judged_row(WRONG, 1), judged_row(WRONG, 1, caption="a dog")]
    _, summary = run(tmp_path, [*right, swapped], wrong)
    assert summary["contradictory_labels"] == [swapped["id"]]


def test_several_files_and_globs(tmp_path):
    for name in ("x", "y", "z"):
        write_lines(tmp_path / f"{name}_wrong.jsonl", [judged_row(WRONG, caption=name)])
    right = [judged_row(RIGHT, caption=name) for name in "xyz"]
    flags = ["--incorrect", f"{tmp_path}/[xy]_*.jsonl", f"{tmp_path}/x_wrong.jsonl"]
    flags += ["--no-balance-positions"]
    pairs, summary = run(tmp_path, right, [], *flags)
    assert len(pairs) == 2
    assert summary["incorrect_side"] == {"rows": 2, "used": 2}
    with pytest.raises(UserError, match="no file matches"):
        run(tmp_path, right, [], "--incorrect", f"{tmp_path}/q*.jsonl")
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path, right, [], "--incorrect", f"{tmp_path}/q.jsonl")


def test_an_empty_file_is_a_stage_that_had_none(tmp_path):
    write_lines(tmp_path / "none.jsonl", [])
    flags = ["--incorrect", tmp_path / "none.jsonl", tmp_path / "incorrect.jsonl"]
    pairs, _ = run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], *flags)
    assert len(pairs) == 1


def test_same_model_modes(tmp_path):
    near = cot((6, 7), (8, 7), 2)
    right = [judged_row(RIGHT, model="a"), judged_row(RIGHT, model="b", caption="a dog")]
    wrong = [
        judged_row(near, model="b"),
        judged_row(cot((6, 7, 1), (8, 7, 9), 2, remark="much, much "), model="a"),
        judged_row(near, model="a", caption="a dog"),
    ]
    flags = ["--no-balance-positions", "--same-model"]
    models = {
        mode: sorted(
            (pair["chosen_model"], pair["rejected_model"])
            for pair in run(tmp_path, right, wrong, *flags, mode)[0]
        )
        for mode in ("prefer", "require", "off")
    }
    assert models == {
        "prefer": [("a", "a"), ("b", "a")],
        "require": [("a", "a")],
        "off": [("a", "b"), ("b", "a")],
    }


def test_what_an_order_is_called_does_not_matter_what_is_shown_does(tmp_path):
    """Two runs may have read the record the other way round."""
    pairs, _ = run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, order="swapped")])
    assert (pairs[0]["images"], pairs[0]["order"]) == (["a.png", "b.png"], "given")


def test_a_pair_of_one_model_in_the_other_order_is_something_else_that_is_there(tmp_path):
    """A pair of one model is preferred, also if the texts of two models are closer."""
    far = cot((2, 2), (8, 9), 2, remark="far, far from it ")
    right = [judged_row(RIGHT), judged_row(WRONG, 2, images=("b.png", "a.png"), order="swapped")]
    wrong = [
        judged_row(far),
        judged_row(RIGHT, 2, images=("b.png", "a.png"), order="swapped", model="model-b"),
    ]
    pairs, summary = run(tmp_path, right, wrong, "--pairs-per-comparison", 2)
    assert [pair["rejected"] for pair in pairs] == [far]
    assert summary["incorrect_side"] == {"rows": 2, "used": 1, "unselected": 1}
    pairs, _ = run(tmp_path, right, wrong, "--same-model", "off")
    assert [pair["rejected"] for pair in pairs] == [RIGHT]


def test_how_often_a_text_is_used(tmp_path):
    wrong = [judged_row(cot((6, 7), (8, n), 2), sample=n) for n in range(2, 9)]
    for uses, number in ((1, 1), (2, 2), (0, 5)):
        flags = ["--pairs-per-comparison", 5, "--chosen-uses", uses, "--no-balance-positions"]
        pairs, _ = run(tmp_path, [judged_row(RIGHT)], wrong, *flags)
        assert len(pairs) == number


def test_a_folder_name_is_no_column_and_no_pattern(tmp_path):
    folder = tmp_path / "model=z/source=[1]"
    folder.mkdir(parents=True)
    (pair,), _ = run(folder, [judged_row(RIGHT)], [judged_row(WRONG)])
    assert pair["chosen_model"] == "model-a"
    odd = write_lines(tmp_path / "x[1].jsonl", [judged_row(WRONG)])
    assert run(tmp_path, [judged_row(RIGHT)], [], "--incorrect", odd)[0]


def test_questions_about_an_image_are_paired_by_their_prompt(tmp_path):
    right, wrong = cot(noun="Answer"), cot((6, 7), (8, 7), 2, noun="Answer")

    def asked(text, first, second, label=1, order="given"):
        key = comparison_key("image_understanding", "what?", ["a.png"], [first, second])
        prompt = f"<image>Question: [what?] Answer 1: [{first}] Answer 2: [{second}]"
        return judged_row(text, label, order=order) | {
            "conversations": conversation(prompt, text), "images": ["a.png"], "id": key,
            "task": "image_understanding",
        }  # fmt: skip

    flags = ["--no-balance-positions"]
    pairs, _ = run(tmp_path, [asked(right, "x", "y")], [asked(wrong, "x", "y")], *flags)
    assert (pairs[0]["images"], pairs[0]["task"]) == (["a.png"], "image_understanding")
    swapped = asked(right, "y", "x", 2, "swapped")
    with pytest.raises(UserError, match="share 0 presentations"):
        run(tmp_path, [asked(right, "x", "y")], [swapped], *flags)
    with pytest.raises(UserError, match="'contradictory_labels': 1"):
        run(tmp_path, [asked(right, "x", "y")], [asked(right, "y", "x", 1, "swapped")] * 2, *flags)
    with pytest.raises(UserError, match="'contradictory_labels': 1"):
        run(tmp_path, [asked(right, "x", "y")], [asked(right, "x", "y", 2)], *flags)
    # Another run has read the record the other way round: its "given" is our "swapped".
    other = [asked(wrong, "y", "x", 2), asked(right, "x", "y", 1, "swapped")]
    pairs, _ = run(tmp_path, [asked(right, "x", "y"), *other], [asked(wrong, "x", "y")], *flags)
    assert len(pairs) == 1


# --- which rejected texts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (["incorrect"], {"wrong"}),
        (["incorrect", "unparsed"], {"wrong", "unparsed"}),
        (["incoherent"], {"incoherent"}),
        (["incorrect", "incoherent", "unparsed"], {"wrong", "unparsed", "incoherent"}),
    ],
)
def test_rejected_kinds(tmp_path, kinds, wanted):
    texts = {
        "wrong": WRONG, "unparsed": "I like the first one", "incoherent": cot((1, 2), (8, 7), 1),
        "right": cot((9, 9), (6, 7), 1),
    }  # fmt: skip
    rejected = [judged_row(text, sample=n) for n, text in enumerate(texts.values())]
    rejected.append(judged_row(WRONG, sample=9, finish_reason="length"))
    chosen = [judged_row(RIGHT), judged_row(cot((9, 7), (6, 7), 1))]
    flags = ["--rejected-kinds", *kinds, "--pairs-per-comparison", 9, "--no-balance-positions"]
    pairs, _ = run(tmp_path, chosen, rejected, *flags)
    assert {pair["rejected"] for pair in pairs} == {texts[name] for name in wanted}


def test_an_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"'unparseable' is none of .* Did you mean 'unparsed'"):
        run(tmp_path, [], [], "--rejected-kinds", "unparseable")


# --- which comparisons ----------------------------------------------------------------------------


def test_the_pass_rate_counts_each_sample_once(tmp_path):
    """One of two is right, one of four is right; rows that are given twice change nothing."""
    right = [judged_row(RIGHT), judged_row(RIGHT, caption="a dog")]
    wrong = [judged_row(WRONG), *(judged_row(WRONG, caption="a dog", sample=n) for n in range(3))]
    again = write_lines(tmp_path / "again.jsonl", wrong[1:])
    flags = ["--incorrect", tmp_path / "incorrect.jsonl", again, "--no-balance-positions"]
    ids = {}
    for low, high in ((0, 1), (0, 0.3), (0.25, 0.25), (0.3, 1)):
        pairs, summary = run(tmp_path, right, wrong, *flags, "--pass-rate", low, high)
        ids[low, high] = {pair["id"] for pair in pairs}
        assert summary["pass_rates"] == {"0.25": 1, "0.50": 1}
    cat, dog = (row["id"] for row in right)
    assert ids == {(0, 1): {cat, dog}, (0, 0.3): {dog}, (0.25, 0.25): {dog}, (0.3, 1): {cat}}
    assert summary["incorrect_side"]["outside_pass_rate"] == 6
    with pytest.raises(UserError, match="LOW and HIGH"):
        run(tmp_path, right, wrong, "--pass-rate", 0.5)


def test_evaluation_rows_are_other_comparisons_and_an_old_file_goes(tmp_path):
    texts = [(RIGHT, WRONG), (WRONG, RIGHT)]
    right = [judged_row(texts[n % 2][0], 1 + n % 2, f"{n}") for n in range(40)]
    wrong = [judged_row(texts[n % 2][1], 1 + n % 2, f"{n}") for n in range(40)]
    train, summary = run(tmp_path, right, wrong, "--eval-fraction", 0.25)
    held_out = read_lines(tmp_path / "out/eval.jsonl")
    assert not {pair["id"] for pair in train} & {pair["id"] for pair in held_out}
    assert summary["eval"]["comparisons"] == len(held_out)
    assert len(held_out) == 10
    assert summary["correct_side"]["used_in_eval"] == len(held_out)
    for file in (train, held_out):
        answers = Counter(pair["chosen"] == RIGHT for pair in file)
        assert abs(answers[True] - answers[False]) <= 1
    run(tmp_path, right, wrong)
    assert not (tmp_path / "out/eval.jsonl").exists()


@pytest.mark.parametrize(
    ("pictures", "captions", "shared", "told"),
    [
        ("{n}", "{n}", 0, ""),
        ("{f}", "{n}", 0, ""),
        ("{n}", "Caption  {f}", 0, ""),
        ("one", "{n}", 10, "10 of 10 comparisons of eval.jsonl share"),
        ("{n}", "one", 10, "10 of 10 comparisons of eval.jsonl share"),
    ],
)
def test_eval_shares_no_picture_and_no_caption_with_train(
    tmp_path, capsys, pictures, captions, shared, told
):
    """Forty comparisons in ten families, or in one."""
    right, wrong = [], []
    for n in range(40):
        about = {"f": n // 4, "n": n}
        first, label = pictures.format(**about), 1 + n % 2
        images = (f"{first}.png", f"{n}b.png")
        caption = captions.format(**about)
        caption = caption.upper() if n % 3 else caption
        for rows, text in ((right, (RIGHT, WRONG)), (wrong, (WRONG, RIGHT))):
            rows.append(judged_row(text[label - 1], label, caption, images))
    train, summary = run(tmp_path, right, wrong, "--eval-fraction", 0.25)
    held_out = read_lines(tmp_path / "out/eval.jsonl")
    assert summary["eval_comparisons_shared_with_train"] == shared
    told_of = [line for line in capsys.readouterr().err.splitlines() if "--eval-fraction" in line]
    assert bool(told_of) == bool(told)
    assert told in "".join(told_of)
    in_train = {image for pair in train for image in pair["images"]}
    assert bool(in_train & {image for pair in held_out for image in pair["images"]}) == (
        pictures == "one"
    )
    assert len(held_out) >= 8


def test_a_caption_counts_under_each_wording_of_its_prompt(tmp_path):
    """Two comparisons show each caption: under a marker, and in words that each has of its own."""
    right, wrong = [], []
    for n in range(40):
        caption, label = f"thing {n // 2}", 1 + n % 2
        wordings = [f"Judge them. Text Caption: [{caption}]", f"Which one, {n}, fits? {caption}"]
        for rows, text in ((right, (RIGHT, WRONG)), (wrong, (WRONG, RIGHT))):
            for wording in wordings[:: 1 if n % 2 else -1]:
                row = judged_row(text[label - 1], label, caption, (f"{n}a.png", f"{n}b.png"))
                conversations = conversation(f"<image><image>{wording}", text[label - 1])
                rows.append(row | {"conversations": conversations})
    train, summary = run(tmp_path, right, wrong, "--eval-fraction", 0.25)
    held_out = read_lines(tmp_path / "out/eval.jsonl")
    captions = [{int(row["images"][0][:-5]) // 2 for row in rows} for rows in (train, held_out)]
    assert not captions[0] & captions[1]
    assert summary["eval_comparisons_shared_with_train"] == 0
    assert len(held_out) >= 8


def test_sources_by_weight(tmp_path):
    right, wrong = [], []
    for n in range(40):
        about = {"caption": f"{n}", "source": "few" if n < 10 else "many"}
        first, second = (RIGHT, WRONG) if n % 2 else (WRONG, RIGHT)
        right.append(judged_row(first, 1 + (n + 1) % 2, **about))
        wrong.append(judged_row(second, 1 + (n + 1) % 2, **about))
    _, summary = run(tmp_path, right, wrong, "--source-weights", "few=1", "many=2")
    assert summary["by_source"] == {"few": 10, "many": 20}
    assert summary["balancing"] == {
        "exchanged_for_positions": {}, "dropped_for_positions": {}, "dropped_for_lengths": {},
        "dropped_by_weights": {"many/image_generation": 10},
    }  # fmt: skip
    assert summary["correct_side"] == {"rows": 40, "used": 30, "dropped_by_weights": 10}
    for wanted, message in (
        (["x=1"], "no pair has the source 'x'"),
        (["few"], "SOURCE=WEIGHT"),
        (["few=1e-320"], "SOURCE=WEIGHT"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, right, wrong, "--source-weights", *wanted)


def test_contradictory_labels_are_listed_with_their_places(tmp_path):
    right = [judged_row(RIGHT, 1), judged_row(RIGHT, 1, caption="a dog")]
    wrong = [judged_row(WRONG, 1, caption="a dog"), judged_row(RIGHT, 2)]
    _, summary = run(tmp_path, right, wrong)
    (row,) = read_lines(tmp_path / "out/contradictory_labels.jsonl")
    assert row["id"] == right[0]["id"]
    assert sorted(row["where"]) == [f"{tmp_path}/correct.jsonl:1", f"{tmp_path}/incorrect.jsonl:2"]
    assert summary["contradictory_comparisons"] == 1
    run(tmp_path, right[1:], wrong[:1])
    assert not (tmp_path / "out/contradictory_labels.jsonl").exists()


def test_lengths_are_evened_out_within_an_order(tmp_path):
    """Each comparison has a close text that is shorter and a farther one that is longer."""
    short, long = WRONG.replace("so", ""), cot((6, 7), (8, 7), 2, remark="as seen at length ")
    right = [judged_row(RIGHT, caption=f"{n}") for n in range(6)]
    wrong = [
        judged_row(text, caption=f"{n}", sample=k)
        for n in range(6)
        for k, text in enumerate((short, long))
    ]
    flags = ["--no-balance-positions", "--rejected-coherence", "coherent"]
    assert run(tmp_path, right, wrong, *flags)[1]["chosen_longer"] == 6
    _, summary = run(tmp_path, right, wrong, *flags, "--balance-lengths")
    assert (summary["pairs"], summary["chosen_longer"], summary["rejected_longer"]) == (6, 3, 3)


def test_several_pairs_a_comparison_are_kept_where_lengths_are_evened_out(tmp_path):
    """The wrong text of each order can be in one pair, with a longer or a shorter right one."""
    right, wrong = [], []
    for n in range(20):
        for label, images in ((1, ("a.png", "b.png")), (2, ("b.png", "a.png"))):
            about = {"caption": f"{n}", "images": images, "label": label}
            texts = (RIGHT, WRONG) if label == 1 else (WRONG, RIGHT)
            for sample, length in enumerate((1, 60)):
                right.append(
                    judged_row(texts[0].replace("so", "so " * length), sample=sample, **about)
                )
            wrong.append(judged_row(texts[1].replace("so", "so " * 30), **about))
    flags = [
        "--balance-lengths",
        "--pairs-per-comparison",
        4,
        "--no-balance-positions",
        "--max-similarity",
        1,
    ]
    _, summary = run(tmp_path, right, wrong, *flags)
    assert (summary["pairs"], summary["chosen_longer"], summary["rejected_longer"]) == (40, 20, 20)
    assert summary["chosen_answer"] == {"1": 20, "2": 20}


# --- messages and plots ---------------------------------------------------------------------------


def test_pairs_of_two_writers_are_warned_of(tmp_path, capsys):
    rows = []
    for n in range(60):
        texts = cot(remark="frankly "), cot((6, 7), (8, 7), 2, remark="notably ")
        label = 1 + n % 2
        rows.append(tuple(judged_row(text, k, f"{n}", model=name) for text, k, name in (
            (texts[0] if label == 1 else cot((6, 7), (8, 7), 2, remark="frankly "), label, "a"),
            (texts[1] if label == 1 else cot(remark="notably "), label, "b"),
        )))  # fmt: skip
    right, wrong = ([row[side] for row in rows] for side in (0, 1))
    _, summary = run(tmp_path, right, wrong, "--plots")
    assert summary["shortcut"]["words"] == 1.0
    # Without judging the texts again, the merger finds what the audit of its file finds.
    assert summary["shortcut"] == audit(tmp_path / "out/train.jsonl").shortcut
    assert summary["shortcut"]["answer"] < 0.7
    told = capsys.readouterr()
    assert "in 100% of held-out pairs by their words alone" in told.err
    assert "words 1.00" in told.out
    for name in ("answer_position", "length_difference", "pass_rate"):
        with Image.open(tmp_path / f"out/plots/{name}.png") as image:
            assert image.width > 800


# --- properties -----------------------------------------------------------------------------------


@st.composite
def responses(draw):
    """Judged rows about a few comparisons: both orders, several models, right and wrong."""
    right, wrong = [], []
    labels = {f"caption {n}": draw(st.sampled_from([1, 2])) for n in range(draw(st.integers(1, 5)))}
    for _ in range(draw(st.integers(1, 24))):
        caption = draw(st.sampled_from(sorted(labels)))
        swapped = draw(st.booleans())
        label = 3 - labels[caption] if swapped else labels[caption]
        # Now and then a label that other rows contradict.
        shown = draw(st.sampled_from([label] * 9 + [3 - label]))
        answer = draw(st.sampled_from([1, 2]))
        first, second = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        totals = draw(st.sampled_from([None] * 5 + [(99, 1)]))
        row = judged_row(
            cot((first,), (second,), answer, totals=totals),
            shown,
            caption,
            ("b.png", "a.png") if swapped else ("a.png", "b.png"),
            order="swapped" if swapped else "given",
            model=draw(st.sampled_from(["model-a", "model-b"])),
            source=draw(st.sampled_from(["s", "t"])),
            template_hash=draw(st.sampled_from(["h", "h", "i"])),
        )
        row["conversations"][0]["value"] += draw(st.sampled_from(["", "", " (other wording)"]))
        (right if draw(st.booleans()) == (answer == shown) else wrong).append(row)
    return right, wrong


@pytest.mark.slow
@given(responses(), st.sampled_from(["prefer", "require", "off"]), st.integers(1, 3), st.randoms())
@hypothesis_settings(deadline=None, max_examples=60)
def test_every_pair_obeys_its_definition_in_whatever_order_the_rows_come(
    made, same_model, count, draw
):
    right, wrong = made
    flags = ["--same-model", same_model, "--pairs-per-comparison", count]
    excluded = judged_row(RIGHT, caption="caption 0")["id"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out = write_lines(
            folder / "held_out.jsonl", [raw_row("caption 0", ["b.png", "a.png"])]
        )
        flags += ["--exclude", held_out]
        try:
            pairs, summary = run(folder, right, wrong, *flags)
        except UserError as error:
            if not str(error).startswith("no pair"):
                raise
            assert not (folder / "out/summary.json").exists()
            return
        written = (folder / "out/train.jsonl").read_bytes()
        told = {side: summary[side] for side in ("correct_side", "incorrect_side")}
        draw.shuffle(right)
        draw.shuffle(wrong)
        _, again = run(folder, right, wrong, *flags)
        assert (folder / "out/train.jsonl").read_bytes() == written
        assert {side: again[side] for side in told} == told
    by_text = {(r["id"], r["order"], r["conversations"][1]["value"], r["model"]): r for r in wrong}
    by_right = {(r["id"], r["order"], r["conversations"][1]["value"], r["model"]): r for r in right}
    contradictory = set(summary["contradictory_labels"])
    for pair in pairs:
        chosen = by_right[pair["id"], pair["order"], pair["chosen"], pair["chosen_model"]]
        rejected = by_text[pair["id"], pair["order"], pair["rejected"], pair["rejected_model"]]
        assert chosen["images"] == rejected["images"] == pair["images"]
        found = judge(pair["chosen"], TASK, chosen["label"], "stop")
        assert found.verdict == "correct"
        assert found.coherence in ("coherent", "no_totals")
        assert judge(pair["rejected"], TASK, rejected["label"], "stop").verdict == "incorrect"
        assert pair["id"] != excluded
        assert pair["id"] not in contradictory
        assert same_model != "require" or pair["chosen_model"] == pair["rejected_model"]
    assert max(Counter(p["id"] for p in pairs).values()) <= count
    assert summary["pairs"] == len(pairs)
    assert sum(summary["chosen_answer"].values()) == len(pairs)
    dropped = sum(summary["balancing"]["dropped_for_positions"].values())
    assert summary["pairs_before_balancing"] == len(pairs) + dropped
    # Pairs of one prompt are neighbours.
    places = [(p["id"], p["images"]) for p in pairs]
    assert sum(a != b for a, b in pairwise(places)) + 1 == len({repr(place) for place in places})
    for side, rows in (("correct_side", right), ("incorrect_side", wrong)):
        counts = dict(summary[side])
        assert counts.pop("rows") == len(rows) == sum(counts.values())


@pytest.mark.slow
@given(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=12), st.booleans())
@hypothesis_settings(deadline=None, max_examples=30)
def test_chosen_answers_are_balanced_whenever_they_can_be(labels, balanced):
    right = [judged_row(RIGHT if x == 1 else WRONG, x, f"c{n}") for n, x in enumerate(labels)]
    wrong = [judged_row(WRONG if x == 1 else RIGHT, x, f"c{n}") for n, x in enumerate(labels)]
    with tempfile.TemporaryDirectory() as name:
        flag = "--balance-positions" if balanced else "--no-balance-positions"
        _, summary = run(Path(name), right, wrong, flag)
    ones, twos = summary["chosen_answer"]["1"], summary["chosen_answer"]["2"]
    if balanced:
        assert abs(ones - twos) <= 1
        assert min(ones, twos) == min(labels.count(1), labels.count(2))
    else:
        assert (ones, twos) == (labels.count(1), labels.count(2))


def test_the_sample_is_what_the_merger_makes(tmp_path):
    sample = REPO / "dataset/sample"
    sides = [read_lines(sample / f"{name}.jsonl") for name in ("correct", "incorrect")]
    run(tmp_path, *sides)
    assert (tmp_path / "out/train.jsonl").read_bytes() == (sample / "dpo.jsonl").read_bytes()


# --- the script -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_runs_alike_twice_and_without_torch(tmp_path):
    write_lines(tmp_path / "c.jsonl", [judged_row(RIGHT, caption=f"{n}") for n in range(20)])
    write_lines(tmp_path / "i.jsonl", [judged_row(WRONG, caption=f"{n}") for n in range(20)])
    command = [
        sys.executable, "scripts/merge_json.py", "--correct", tmp_path / "c.jsonl",
        "--incorrect", tmp_path / "i.jsonl", "--select", "random", "--out",
    ]  # fmt: skip
    written = []
    for name in ("one", "two"):
        done = subprocess.run(
            [*command, tmp_path / name], cwd=REPO, capture_output=True, text=True, check=True
        )
        written.append((tmp_path / name / "train.jsonl").read_bytes())
        assert "1 pairs about 1 comparisons (19 dropped to balance, 0 by weights)" in done.stdout
    assert written[0] == written[1]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "scripts/merge_json.py", "--help"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cot_reward.pairing.settings" in done.stderr
    for heavy in ("torch", "duckdb", "pyarrow", "sklearn"):
        assert heavy not in done.stderr


def test_a_mistake_is_one_message():
    done = subprocess.run(
        [sys.executable, "scripts/merge_json.py", "--corect", "x"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown flag '--corect'. Did you mean '--correct'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_texts_of_two_forms_make_no_pair_and_keep_their_rule(tmp_path: Path) -> None:
    def as_json(answer: int, **other: Any) -> dict[str, Any]:
        scores = {"Image 1": 9 - 5 * (answer - 1), "Image 2": 1 + 5 * (answer - 1)}
        text = json.dumps({"categories": [{"scores": scores}], "winner": f"Image {answer}"})
        return judged_row(text, form="json", **other)

    right, wrong = [judged_row(RIGHT), as_json(1)], [judged_row(WRONG), as_json(2)]
    flags = ["--pairs-per-comparison", 4, "--no-balance-positions"]
    pairs, _ = run(tmp_path, right, wrong, *flags)
    assert {(pair["form"], pair["chosen"][0], pair["rejected"][0]) for pair in pairs} == {
        ("think", "<", "<"), ("json", "{", "{"),
    }  # fmt: skip
    for pair in pairs:
        found = judge(pair["rejected"], TASKS["image_generation"], 2, form=pair["form"])
        assert (found.verdict, found.coherence) == ("correct", "coherent")
    with pytest.raises(UserError):
        run(tmp_path, [judged_row(RIGHT)], [as_json(2)])


@pytest.mark.parametrize("early", ["images", "videos"])
def test_a_file_loads_whose_other_kind_of_media_would_come_late(tmp_path, early):
    from datasets import load_dataset

    # Pairs are sorted by key, and `datasets` reads chunks of 10 MB.
    late = {"images": "videos", "videos": "images"}[early]
    sides: tuple[list, list] = ([], [])
    filler = "word " * 200_000
    for n in range(16):
        name = late if n in (14, 15) else early
        task = f"{name.removesuffix('s')}_generation"
        media = [f"{n}a.x", f"{n}b.x"]
        for side, answer in zip(sides, (1, 2), strict=True):
            noun = name.capitalize().removesuffix("s")
            text = f"<think>I looked.</think><answer>{noun} {answer} is better</answer>"
            prompt = PLACEHOLDERS[name] * 2 + f"{filler}Judge: [cat {n}]"
            other = {"images": [], "videos": [], name: media}
            side.append(judged_row(
                text, id=f"{n:x}" * 64, task=task, conversations=conversation(prompt, text), **other
            ))  # fmt: skip
    pairs, _ = run(tmp_path, *sides, "--no-balance-positions", "--max-similarity", 1)
    assert [pair["id"][0] for pair in pairs] == ["0", "e", *"123456789abcdf"]
    path = tmp_path / "out/train.jsonl"
    assert path.stat().st_size > 15 * 10**6
    loaded = load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["id"] == [pair["id"] for pair in pairs]
    assert loaded[1][late] == ["14a.x", "14b.x"]


def test_all_pairs_are_said_to_be_unlimited(tmp_path, capsys):
    run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--select", "all")
    assert "--pairs-per-comparison, --chosen-uses and --rejected-uses do not" in (
        capsys.readouterr().err
    )
