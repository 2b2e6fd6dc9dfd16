"""The audit of DPO files, and the classifiers that see no image."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing import shortcut
from cot_reward.pairing.audit import audit, print_audit
from cot_reward.pairing.settings import AuditSettings
from cot_reward.pairing.shortcut import Texts, accuracies, warning
from cot_reward.rows.responses import text_of
from helpers.environments import REPO
from helpers.rows import write_lines, write_rows
from helpers.texts import cot

PROMPT = "<image><image>Judge. Text Caption: [a cat]"
PUBLISHED = REPO.parent / "shared/data/evalmuse_pairs_200.jsonl"


def row(chosen=None, rejected=None, **other):
    return {
        "problem": PROMPT,
        "chosen": chosen if chosen is not None else cot(),
        "rejected": rejected if rejected is not None else cot((1, 2), (8, 7), 2),
        "images": ["a.png", "b.png"],
    } | other


def test_findings_answers_lengths_and_models_are_counted(tmp_path):
    rows = [
        row(),
        row(),
        row(chosen=cot((1, 2), (8, 7), 1), rejected="no form at all"),
        row(chosen=cot((7, 7), (7, 7), 2), rejected=cot(totals=(99, 1))),
        row(chosen_model="a", rejected_model="a", images=["c.png", "d.png"]),
        row(chosen_model="a", rejected_model="b", images=["e.png", "f.png"]),
        row(chosen_model="", rejected_model="", images=["g.png", "h.png"]),
        row(rejected=cot((5, 5), (6, 6), 2).replace("(5/10)", "(4/10)")),
        row(rejected_finish_reason="length", images=["i.png", "j.png"]),
    ]
    found = audit(write_lines(tmp_path / "x.jsonl", rows)).to_json()
    assert found["rows"] == 9
    assert found["bad_rows"] == 0
    none = dict.fromkeys(found["chosen"], 0)
    assert list(none) == ["coherent", "no_totals", "tie", "contradicts", "wrong_sum", "unparsed",
                          "truncated", "mismatch"]  # fmt: skip
    assert found["chosen"] == none | {"coherent": 7, "contradicts": 1, "tie": 1}
    assert found["rejected"] == none | {
        "coherent": 6, "unparsed": 1, "wrong_sum": 1, "truncated": 1, "mismatch": 1
    }  # fmt: skip
    assert found["chosen_answer"] == {"1": 8, "2": 1}
    assert found["chosen_longer"] == sum(len(r["chosen"]) > len(r["rejected"]) for r in rows)
    assert (found["duplicates"], found["same_model"]) == (1, 1)
    assert found["shortcut"] == {"words": None, "length": None, "answer": None}


def messages(*texts):
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


FORMS = {
    "prompt inside": {
        "chosen": messages(PROMPT, cot()), "rejected": messages(PROMPT, cot(answer=2))
    },
    "instruction": {"instruction": PROMPT, "chosen": cot(), "rejected": cot(answer=2)},
    "instruction, input": {
        "instruction": "Judge.", "input": PROMPT, "chosen": cot(), "rejected": cot(answer=2)
    },
    "ours": row(),
    "prompt": {"prompt": PROMPT, "chosen": cot(), "rejected": cot(answer=2)},
    "conversations": {
        "conversations": [{"from": "human", "value": PROMPT}], "images": ["a", "b"],
        "chosen": {"from": "gpt", "value": cot()},
        "rejected": {"from": "gpt", "value": cot(answer=2)},
    },
    "content parts": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}],
        "chosen": [{"role": "assistant", "content": cot()}],
        "rejected": [
            {"role": "assistant", "content": [{"type": "text", "text": cot(answer=2)}]}
        ],
    },
    "null problem": row(problem=None, prompt=PROMPT),
    "null input": row(problem=None, prompt=None, instruction=PROMPT, input=None),
    "null prompt, prompt inside": row(
        messages(PROMPT, cot()), messages(PROMPT, cot(answer=2)), problem=None, conversations=None
    ),
    "a turn without a text": {
        "prompt": [*messages("x"), {"role": "assistant", "content": None}, *messages("y")],
        "chosen": cot(), "rejected": cot(answer=2),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_may_stand_elsewhere(tmp_path, form):
    for name in ("x.json", "x.jsonl"):
        found = audit(write_rows(tmp_path / name, [FORMS[form]]))
        assert (found.bad_rows, found.answers[1]) == (0, 1), found.bad
        assert found.findings["chosen"]["coherent"] == 1
        assert found.findings["rejected"]["unparsed"] == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda n: {"prompt": messages(f"{n}", "ok", "And now?")},
        lambda n: {
            "conversations": [*messages(f"{n}", "ok"), {"from": "human", "value": "And now?"}]
        },
        lambda n: {
            "chosen": messages(f"{n}", "ok", "And now?", cot()),
            "rejected": messages(f"{n}", "ok", "And now?", cot(answer=2)),
        },
        lambda n: {"instruction": "Judge.", "input": f"{n}"},
        lambda n: {"instruction": "And now?", "history": [[f"{n}", "ok"]]},
    ],
)
def test_prompts_that_end_alike_are_several(tmp_path, ask):
    """Prompts that differ before their last turn belong to different comparisons."""
    texts = {"chosen": cot(), "rejected": cot(answer=2)}
    found = audit(write_lines(tmp_path / "x.jsonl", [texts | ask(n) for n in range(10)]))
    assert (found.bad_rows, found.duplicates) == (0, 0), found.bad
    assert found.shortcut["answer"] == 1.0
    same = audit(write_lines(tmp_path / "x.jsonl", [texts | ask(0) for _ in range(10)]))
    assert (same.duplicates, same.shortcut["answer"]) == (9, None)


def test_one_long_prompt_does_not_make_all_keys_long(tmp_path, monkeypatch):
    """The folds use the memory of the longest key for every key: gigabytes, for one such row."""
    keys = []
    monkeypatch.setattr(shortcut, "accuracies", lambda pairs, _: keys.extend(pairs) or {})
    audit(write_lines(tmp_path / "x.jsonl", [row(), row(problem=PROMPT + " long" * 10_000)]))
    first, second = (pair.comparison for pair in keys)
    assert first != second
    assert max(len(first), len(second)) <= 64


def test_both_orders_of_a_comparison_are_one_group(tmp_path):
    rows = [row(images=images) for n in range(9) for images in ([f"{n}", "b"], ["b", f"{n}"])]
    path = write_lines(tmp_path / "x.jsonl", rows)
    assert audit(path).shortcut["words"] is None
    assert audit(write_lines(path, [*rows, row()])).shortcut["words"] is not None


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"chosen": "x"},
        {"chosen": "x", "rejected": "y"},
        {"chosen": messages("x"), "rejected": messages("y")},
        row(problem=[]),
        row(problem=None),
        row(images=5),
        row(images=True),
        row(videos={"a": 1}),
        row(chosen=3),
        row(rejected=[]),
        row(chosen={"a": 1}),
        row(problem="<image>One placeholder for two images"),
        row(rejected=cot()),
        row(chosen="It holds <|image_pad|>"),
        [1],
        7,
    ],
)
def test_rows_that_are_no_pairs_are_counted(tmp_path, bad):
    found = audit(write_rows(tmp_path / "x.jsonl", [row(), bad]))
    assert (found.rows, found.bad_rows) == (2, 1)
    assert found.bad[0].startswith(f"{tmp_path}/x.jsonl:2: ")
    assert found.answers[1] == 1


def test_the_task_is_told_by_the_texts(tmp_path):
    rows = [
        row(chosen=cot(noun=noun), rejected=cot(answer=2, noun=noun))
        for noun in ("Video", "Answer")
    ]
    assert audit(write_lines(tmp_path / "x.jsonl", rows)).findings["chosen"]["coherent"] == 2


def test_a_file_without_a_pair_is_an_error(tmp_path, capsys):
    """Also beside a file that has some, as a table and as JSON."""
    judged = {"conversations": messages("x", cot()), "images": ["a.png", "b.png"]}
    good = write_lines(tmp_path / "good.jsonl", [row(), judged])
    bad = write_lines(tmp_path / "bad.jsonl", [judged, row(rejected=cot())])
    assert print_audit(AuditSettings([good])) == 0
    assert capsys.readouterr().err == ""
    for files, as_json in (([bad], False), ([bad, good], True)):
        assert print_audit(AuditSettings(files, json=as_json)) == 1
        told = capsys.readouterr()
        assert f"error: {bad}: none of its 2 rows is a pair: {bad}:1: has no 'chosen'" in told.err
        assert len(told.out.splitlines()) >= len(files)


def test_a_text_of_a_message():
    assert text_of([{"content": "a"}, {"content": [{"type": "image"}, {"text": "b"}]}]) == "b"
    with pytest.raises(ValueError, match="no text"):
        text_of(None)


def pairs(number, chosen, rejected, answers=(1, 2)):
    return [
        Texts(str(n), chosen(random.Random(f"c{n}")), rejected(random.Random(f"r{n}")), *answers)
        for n in range(number)
    ]


def say(*words):
    return lambda draw: " ".join(draw.choices([*words, *"abcdefgh"], k=60))


def test_words_tell_two_writers_apart_and_one_writer_not():
    apart = accuracies(pairs(100, say("quite"), say("rather")))
    assert apart["words"] == 1.0
    alike = accuracies(pairs(400, say("quite"), say("quite")))
    assert 0.4 < alike["words"] < 0.6
    assert 0.4 < alike["length"] < 0.6


def test_answers_tags_and_digits_are_no_words():
    """Otherwise words would tell the chosen text wherever positions are uneven."""
    told = pairs(
        60,
        lambda _: "<think>same 9 words 8</think><answer>first is better</answer>",
        lambda _: "<think>same 1 words 2</think><answer>second is better",
    )
    assert accuracies(told)["words"] == 0.5
    chinese = pairs(60, lambda _: "画面很好看", lambda _: "画面不好看")
    assert accuracies(chinese)["words"] == 1.0


def test_length_and_answer_are_told_apart():
    longer = pairs(
        60, lambda draw: "a" * draw.randint(50, 60), lambda draw: "a" * draw.randint(9, 20)
    )
    found = accuracies(longer)
    assert found["length"] == found["answer"] == 1.0
    even = [Texts(str(n), "a", "a", 1 + n % 2, 2 - n % 2) for n in range(100)]
    assert accuracies(even)["answer"] <= 0.55
    unparsed = [Texts(str(n), "a", "a", 1 + n % 2, 0) for n in range(100)]
    assert 0.4 <= accuracies(unparsed)["answer"] <= 0.6


def test_folds_keep_comparisons_together():
    """Words of one comparison say nothing about another comparison."""
    made = []
    for n in range(40):
        first, second = (hashlib.sha256(f"{n} {k}".encode()).hexdigest() for k in "ab")
        first, second = ("".join(c for c in text if c.isalpha()) for text in (first, second))
        made += [Texts(str(n), f"same {first}", f"same {second}", 1, 2)] * 5
    assert accuracies(made)["words"] <= 0.55
    apart = [Texts(f"{n}", pair.chosen, pair.rejected, 1, 2) for n, pair in enumerate(made)]
    assert accuracies(apart)["words"] > 0.9


def test_a_warning_says_what_and_how_much():
    assert warning({"words": 0.8, "length": 0.5, "answer": None}, "x") == ""
    told = warning({"words": 0.95, "length": 0.81, "answer": 0.5}, "x.jsonl")
    assert told.startswith("warning: x.jsonl: ")
    assert "95% of held-out pairs by their words" in told
    assert "81% of held-out pairs by their length" in told


AUDIT = ["scripts/audit_pairs.py"]
REPORT = ["scripts/merge_json.py", "--report"]


def script(*words):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", [AUDIT, REPORT])
def test_the_scripts_audit_a_file_and_change_nothing(tmp_path, command):
    path = write_lines(tmp_path / "x.jsonl", [row(images=[f"{n}", "b"]) for n in range(20)])
    before = path.read_bytes()
    done = script(*command, path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["rows", "bad_rows", "chosen", "rejected", "chosen_answer",
                           "chosen_longer", "duplicates", "same_model", "shortcut"]  # fmt: skip
    assert list(found["shortcut"]) == ["words", "length", "answer"]
    assert found["rows"] == 20
    table = script(*command, path).stdout
    assert "20 rows" in table
    assert "warning:" in table
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert "--seed must be" in script(*command, path, "--seed", -1).stderr
    missing = script(*command, tmp_path / "none.jsonl")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no such file" in missing.stderr


def test_both_scripts_print_the_same(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [row()])
    table = script(*AUDIT, path, "--seed", 3).stdout
    assert table == script(REPORT[0], "--seed", 3, f"--report={path}").stdout
    assert "1 rows" in table


def test_several_files_are_a_line_of_json_each(tmp_path, capsys):
    paths = [
        write_lines(tmp_path / f"{count}.jsonl", [row(images=["a", f"{n}"]) for n in range(count)])
        for count in (1, 2)
    ]
    assert print_audit(AuditSettings(paths, json=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rows"] for line in lines] == [1, 2]


def test_json_is_no_flag_of_a_merge_and_an_audit_needs_a_file():
    assert "unknown flag '--json'" in script("scripts/merge_json.py", "--json").stderr
    for command in (AUDIT, REPORT):
        done = script(*command)
        assert done.returncode == 2
        assert "FILES is needed" in done.stderr


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match="empty"):
        audit(write_lines(tmp_path / "x.jsonl", []))


@pytest.mark.skipif(not PUBLISHED.exists(), reason="published rows are not part of the project")
def test_the_published_pairs_have_the_counts_that_were_found_by_hand():
    found = audit(PUBLISHED).to_json()
    chosen, rejected = found["chosen"], found["rejected"]
    assert (chosen["coherent"], chosen["contradicts"], chosen["tie"]) == (139, 42, 19)
    assert [rejected[name] for name in ("coherent", "wrong_sum", "unparsed", "no_totals")] == [
        143, 24, 17, 8
    ]  # fmt: skip
    assert (rejected["contradicts"], rejected["tie"], rejected["mismatch"]) == (6, 2, 80)
    assert (found["chosen_answer"]["2"], found["chosen_longer"]) == (140, 145)
    assert found["shortcut"]["words"] == 1.0
