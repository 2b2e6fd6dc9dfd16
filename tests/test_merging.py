"""The merger: which rows become DPO pairs, what is refused, and what the summary says."""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPO, cot, judged_row, raw_row, read_lines, thought, write_lines
from cot_reward import settings
from cot_reward.dpo.data import template_warning
from cot_reward.judge import judge
from cot_reward.merging import MergeSettings, merge
from cot_reward.records import PAIR_FIELDS
from cot_reward.settings import UserError
from cot_reward.tasks import TASKS
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

TASK = TASKS["image_generation"]
RIGHT = cot((8, 7), (6, 7), 1)
WRONG = cot((6, 7), (8, 7), 2)


def run(folder: Path, correct: list, incorrect: list, *flags: object) -> tuple[list, dict]:
    """Merge these rows; the pairs and the summary."""
    write_lines(folder / "correct.jsonl", correct)
    write_lines(folder / "incorrect.jsonl", incorrect)
    argv = ["--correct", folder / "correct.jsonl", "--incorrect", folder / "incorrect.jsonl",
            "--media-root", folder, "--out", folder / "out", *flags]  # fmt: skip
    assert merge(settings.parse(MergeSettings, "", argv=list(map(str, argv)))) == 0
    summary = json.loads((folder / "out/summary.json").read_text())
    return read_lines(folder / "out/train.jsonl"), summary


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
    assert (summary["pairs"], summary["same_model"]) == (1, 0)
    assert summary["chosen_answer"] == {"1": 1, "2": 0}


@pytest.mark.parametrize(
    "other",
    [
        {"caption": "a dog"},
        {"images": ("a.png", "c.png")},
        {"images": ("b.png", "a.png"), "order": "swapped"},
    ],
)
def test_texts_about_something_else_are_no_pair(tmp_path, other):
    with pytest.raises(UserError, match="no pair: 1 usable correct and 1 usable incorrect"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, **other)])


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
        "rows": 7, "usable": 1, "chosen_contradicts": 1, "chosen_tie": 1, "chosen_wrong_sum": 1,
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
    assert capsys.readouterr().err == ""
    assert template_warning(str(tmp_path / "out/train.jsonl"), None) == ""
    assert summary["template_hashes"] == {"image_generation": ["0" * 16]}
    run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, template_hash="1" * 16)])
    assert "differently worded prompts" in capsys.readouterr().err
    warning = template_warning(str(tmp_path / "out/train.jsonl"), None)
    assert f"image_generation: {'0' * 16}, {'1' * 16}" in warning
    # Rows from elsewhere have no summary beside them.
    assert template_warning(str(tmp_path / "train.jsonl"), None) == ""


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


@pytest.mark.parametrize("form", ["stage 2 rows", "raw data", "raw data with ids of its own"])
def test_excluded_comparisons_never_pass_in_either_order(tmp_path, form):
    right, wrong = [], []
    for images, order, label in (
        (("a.png", "b.png"), "given", 1),
        (("b.png", "a.png"), "swapped", 2),
    ):
        for caption in ("a cat", "a dog"):
            about = {"caption": caption, "images": images, "order": order}
            right.append(judged_row(RIGHT if label == 1 else WRONG, label, **about))
            wrong.append(judged_row(WRONG if label == 1 else RIGHT, label, **about))
    held_out = {
        "stage 2 rows": judged_row(RIGHT, images=("b.png", "a.png"), order="swapped"),
        "raw data": raw_row(" a cat ", ["./b.png", "a.png"]),
        "raw data with ids of its own": raw_row("a cat", ["a.png", "b.png"]) | {"id": "17"},
    }[form]
    path = write_lines(tmp_path / "held_out.jsonl", [held_out])
    pairs, summary = run(tmp_path, right, wrong, "--exclude", path)
    dog = judged_row(RIGHT, caption="a dog")["id"]
    assert {(pair["id"], pair["order"]) for pair in pairs} == {(dog, "given"), (dog, "swapped")}
    assert summary["correct_side"]["excluded"] == summary["incorrect_side"]["excluded"] == 2


def test_a_held_out_file_that_cannot_be_read_whole_is_an_error(tmp_path):
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps(raw_row("a", ["a.png", "b.png"])) + "\n{broken\n")
    with pytest.raises(UserError, match=r"held_out\.jsonl:2: .*whole files"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--exclude", path)


BAD = [
    ({"images": []}, "fewer than two media"),
    ({"images": ["a.png"], "videos": ["b.mp4"]}, "fewer than two media"),
    ({"images": [{"bytes": "x"}, "b.png"]}, "must be a list of paths"),
    ({"images": None}, "'images' must be of type list"),
    ({"id": None}, "'id' must be of type str"),
    ({"label": 0}, "'label' must be 1 or 2"),
    ({"label": "1"}, "'label' must be of type int"),
    ({"task": "chess"}, "unknown task 'chess'"),
    ({"conversations": []}, "one human and one gpt turn"),
    ({"conversations": [{"from": "human", "value": "\ud800"}] * 2}, "not valid Unicode"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_counted_with_its_file_and_line(tmp_path, change, message):
    rows = [judged_row(RIGHT), judged_row(RIGHT, sample=1) | change]
    flags = "--max-bad-rows", 0.5
    pairs, summary = run(tmp_path, rows, [judged_row(WRONG)], *flags)
    assert len(pairs) == 1
    (bad,) = summary["bad_rows"]
    assert bad.startswith(f"{tmp_path / 'correct.jsonl'}:2: ")
    assert message in bad
    assert summary["correct_side"] == {"rows": 2, "bad": 1, "usable": 1}


def test_more_than_one_percent_of_bad_rows_is_an_error(tmp_path):
    rows = [judged_row(RIGHT, sample=n) for n in range(97)]
    bad = judged_row(RIGHT, images=())
    pairs, _ = run(tmp_path, [*rows, bad], [judged_row(WRONG)] * 2)
    assert len(pairs) == 1
    with pytest.raises(UserError, match=r"2 of 100 rows are bad.*\n.*correct\.jsonl:98: "):
        run(tmp_path, [*rows, bad, bad], [judged_row(WRONG)])


def test_several_files_and_globs(tmp_path):
    for name in ("x", "y", "z"):
        write_lines(tmp_path / f"{name}_wrong.jsonl", [judged_row(WRONG, caption=name)])
    right = [judged_row(RIGHT, caption=name) for name in "xyz"]
    flags = ["--incorrect", f"{tmp_path}/[xy]_*.jsonl", f"{tmp_path}/x_wrong.jsonl"]
    flags += ["--no-balance-positions"]
    pairs, summary = run(tmp_path, right, [], *flags)
    assert len(pairs) == 2
    assert summary["incorrect_side"] == {"rows": 2, "usable": 2}
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
        # A label that the other file contradicts, now and then.
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
        draw.shuffle(right)
        draw.shuffle(wrong)
        run(folder, right, wrong, *flags)
        assert (folder / "out/train.jsonl").read_bytes() == written
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
    assert max(Counter((p["id"], p["order"]) for p in pairs).values()) <= count
    assert summary["pairs"] == len(pairs)
    assert sum(summary["chosen_answer"].values()) == len(pairs)
    dropped = sum(summary["dropped_by_balancing"].values())
    assert summary["pairs_before_balancing"] == len(pairs) + dropped
    for side, rows in (("correct_side", right), ("incorrect_side", wrong)):
        counts = dict(summary[side])
        assert counts.pop("rows") == len(rows) == sum(counts.values())


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


# --- the script -----------------------------------------------------------------------------------


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
        assert "1 pairs about 1 comparisons (19 dropped to balance positions)" in done.stdout
    assert written[0] == written[1]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "scripts/merge_json.py", "--help"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.monotonic() - started < 2
    assert "cot_reward.merging" in done.stderr
    assert "torch" not in done.stderr


def test_a_mistake_is_one_message():
    done = subprocess.run(
        [sys.executable, "scripts/merge_json.py", "--corect", "x"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown flag '--corect'. Did you mean '--correct'?" in done.stderr
    assert "Traceback" not in done.stderr
