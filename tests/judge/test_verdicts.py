"""The judge: one test for each verdict and finding, in the forms that real models write."""

import json
import re
from collections import Counter
from decimal import Decimal

import pytest
from cot_reward.judge import answer_block, destination, has_unread_totals, judge, totals_in
from cot_reward.records import Verdict
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from helpers.layouts import cases
from helpers.texts import cot, thought
from hypothesis import given
from hypothesis import strategies as st

IMAGES = TASKS["image_generation"]
PUBLISHED = REPO.parent / "shared/data/evalmuse_pairs_200.jsonl"


def verdict(text: str, label: int = 1, finish_reason: str = "stop") -> str:
    return judge(text, IMAGES, label, finish_reason).verdict


def coherence(reasoning: str, answer: int = 1) -> str:
    return judge(thought(reasoning, answer), IMAGES, 1).coherence


def totals(reasoning: str, noun: str = "Image") -> tuple[Decimal, Decimal] | None:
    found, _ = totals_in(reasoning, noun)
    return (found[1].total, found[2].total) if found else None


# --- the verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_answer_that_is_the_label_is_correct(task):
    text = cot(answer=1, noun=task.noun)
    assert judge(text, task, 1) == Verdict("correct", "coherent", 1)
    assert judge(text, task, 2) == Verdict("incorrect", "coherent", 1)


def test_answer_strings_of_each_task():
    assert {name: task.answers for name, task in TASKS.items()} == {
        "image_generation": ("Image 1 is better", "Image 2 is better"),
        "video_generation": ("Video 1 is better", "Video 2 is better"),
        "image_editing": ("Image 1 is better", "Image 2 is better"),
        "image_understanding": ("Answer 1 is better", "Answer 2 is better"),
        "video_understanding": ("Answer 1 is better", "Answer 2 is better"),
    }


def test_another_tasks_answer_is_unparsed():
    assert judge(cot(noun="Video"), IMAGES, 1) == Verdict("unparsed", "", 0)
    assert judge(cot(), TASKS["image_understanding"], 1).verdict == "unparsed"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Image 1",
        "image 1 is better",
        "Image 1 is better.",
        "Image 1 is better than Image 2",
        "Image 1 is better Image 2 is better",
        "Image 3 is better",
        "Both are equally good",
        "**Image 1 is better**",
        "Image 1\nis better",
        "Image １ is better",
    ],
)
def test_any_other_answer_is_unparsed(answer):
    assert verdict(f"<think>x</think><answer>{answer}</answer>") == "unparsed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Image 1 is better",
        "<answer>Image 1 is better</answer>",
        "<think>x</think>Image 1 is better",
        "<think>x</think><answer>Image 1 is better",
        "<think>x<answer>Image 1 is better</answer>",
        "x</think><answer>Image 1 is better</answer>",
        "<answer>Image 1 is better</answer><think>x</think>",
        "<think>x<answer>Image 1 is better</answer></think>",
        "<Think>x</Think><answer>Image 1 is better</answer>",
        "< think>x</think><answer>Image 1 is better</answer>",
    ],
)
def test_a_missing_or_misplaced_block_is_unparsed(text):
    assert verdict(text) == "unparsed"


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_a_tag_that_comes_twice_is_unparsed(tag):
    text = thought("x")
    assert verdict(text) == "correct"
    assert verdict(text.replace(tag, tag + tag)) == "unparsed"
    assert verdict(text.replace("x", f"x {tag} x")) == "unparsed"
    assert verdict(text + text) == "unparsed"


@pytest.mark.parametrize("where", ["Sure! {}", "{} I hope this helps.", "\ufeff{}", "{}<|im_end|>"])
def test_text_outside_the_blocks_is_unparsed(where):
    assert verdict(where.format(thought("x"))) == "unparsed"
    assert verdict(thought("x").replace("</think>", "</think> so:")) == "unparsed"


def test_the_answer_block_is_that_of_a_text_of_the_asked_form():
    assert answer_block(thought("x", 2) + "\n") == "<answer>Image 2 is better</answer>"
    assert answer_block("<think>x</think><answer> both\n</answer>") == "<answer> both\n</answer>"
    assert answer_block("<answer>Image 1 is better</answer>") is None
    assert answer_block(thought("x") + thought("x")) is None


def test_generation_must_have_ended_by_itself():
    assert verdict(cot(), finish_reason="stop") == "correct"
    assert judge(cot(), IMAGES, 1, "length") == Verdict("truncated", "", 0)
    assert judge("<think>cut o", IMAGES, 1, "length") == Verdict("truncated", "", 0)
    for reason in ("content_filter", "abort", "tool_calls", "error"):
        assert judge(cot(), IMAGES, 1, reason) == Verdict("unparsed", "", 0)
    # Other servers' words.
    assert verdict(cot(), finish_reason="eos") == "correct"
    assert verdict(cot(), finish_reason="max_tokens") == "truncated"


def test_published_rows_have_no_finish_reason_and_are_judged_all_the_same():
    assert judge(cot(), IMAGES, 1).verdict == "correct"


# --- the coherence --------------------------------------------------------------------------------


def test_coherent():
    assert judge(cot((8, 7, 9), (6, 7, 5), 1), IMAGES, 1).coherence == "coherent"


def test_contradicts_when_the_totals_point_to_the_other_answer():
    assert judge(cot((8, 7, 9), (6, 7, 5), 2), IMAGES, 2) == Verdict("correct", "contradicts", 2)


def test_tie():
    assert judge(cot((8, 7), (7, 8), 2), IMAGES, 2).coherence == "tie"


def test_wrong_sum():
    assert judge(cot(totals=(25, 18)), IMAGES, 1).coherence == "wrong_sum"


def test_wrong_sum_comes_before_contradicts_and_tie():
    assert judge(cot(totals=(17, 18)), IMAGES, 1).coherence == "wrong_sum"
    assert judge(cot(totals=(18, 18)), IMAGES, 1).coherence == "wrong_sum"


@pytest.mark.parametrize(
    "reasoning",
    [
        "",
        "I like the first one.",
        "1. Style: Image 1 (5/10) - dull; Image 2 (9/10) - bright",
        "Total score: both are good.",
        "Total score:\nImage 1: 24",
        "Total score:\nImage 2: 9+8+8=25",
        "Image 1 is totally wrong (2/10), Image 2 is not (9/10)",
        "Image 1: fit 3 out of a total of 10. Image 2: fit 8 out of a total of 20.",
        "In total, Image 1 is ahead by 3 points over Image 2 with 4.",
        "Light: Image 1: 3+2=5, Image 2: 2+2=4\nLook: Image 1: 1+2=3, Image 2: 4+3=7",
        "Fit: Image 1 (3/10), Image 2 (8/10)\nLook: Image 1: 4+3=7, Image 2: 5+3=8",
        "Image 1: Sub-total: 7\nImage 2: Sub-total: 17",
        "Total: Image 1 7 cats vs Image 2 17 dogs",
        "The image has 3 people in all. Image 1 (7/10), Image 2 (8/10)",
        "Image 1 has 3 dogs in total, Image 2 has 5 cats in total.",
        "Image 1: 1+1=2 is legible (9/10). Image 2: 1+1=3 is legible (2/10).",
        "| Dim | Image 1 | Image 2 | Total |\n|---|---|---|---|\n| Fit | 3 | 8 | 11 |",
        "| | Total |\n|---|---|\n| Both together | 43 |",
    ],
)
def test_no_totals_is_never_read_as_a_contradiction(reasoning):
    assert coherence(reasoning, 1) == coherence(reasoning, 2) == "no_totals"


STRAY = [
    "In total, both images have merits. ",
    "I will total the scores. ",
    "Let me score each, and then compute the total.\n",
    "The caption asks for a total eclipse.\n",
    "Total darkness is asked for. ",
    "合计有三个维度。",
]


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize(
    "scores",
    [
        "1. A: Image 1 (2/10), Image 2 (9/10)\n2. B: Image 1 (9/10), Image 2 (1/10)",
        "1. A:\n- Image 1: 2/10\n- Image 2: 9/10",
        "Image 1 (2/10) is dull, Image 2 (9/10) is not. Image 1 (9/10) fits, Image 2 (8/10) too",
        "Image 1 has 3 cats, Image 2 has 4 cats.",
        "Image 1 has a total of 3 cats, Image 2 a total of 4 cats.",
    ],
)
def test_scores_after_a_stray_word_for_totals_are_not_totals(stray, scores):
    assert coherence(stray + scores) == "no_totals"
    stated = "\nTotal score:\nImage 1: 25\nImage 2: 18"
    assert totals(stray + scores + stated) == (25, 18)


@pytest.mark.parametrize(
    "remark",
    [
        "The total gap comes from style, where Image 1 has 3 and Image 2 has 9.",
        "With a total lead of 7, Image 1 wins: Image 1 (8/10) and Image 2 (9/10) look alike.",
        "In total: 7 points between Image 1 and Image 2.",
        "Image 2 (9/10) was a total surprise in style, Image 1 (2/10) was not.",
    ],
)
def test_a_remark_after_the_totals_does_not_replace_them(remark):
    assert totals(f"Total score:\nImage 1: 9+8+8=25\nImage 2: 6+7+5=18\n{remark}") == (25, 18)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("9*2+8=26", "10*2+4=24"),
        ("0.4*9+0.6*8=8.4", "0.4*6+0.6*7=6.6"),
        ("5×2+20=30", "6×2+7=19"),
        ("5+10×2=25", "6+7×2=20"),
        ("(5+10+10)/3=8.3", "(6+7+5)/3=6"),
        ("5+10+10-1=24", "6+7+5−1=17"),
        ("-5", "-9"),
        ("7,5+8,0=15,5", "7,9+6,0=13,9"),
        ("5 10 10 = 25", "6 7 5 = 18"),
        ("5, 10, 10 = 25", "6, 7, 5 = 18"),
        ("| 5 | 10 | 10 | 25 |", "| 6 | 7 | 5 | 18 |"),
        ("5/10 | 25/30", "6/10 | 18/30"),
    ],
)
def test_a_part_of_a_calculation_or_of_a_row_is_not_a_total(first, second):
    assert totals(f"Total score:\nImage 1: {first}\nImage 2: {second}") is None


def test_a_mismatch_stands_beside_the_coherence():
    scores = "1. A: Image 1 (8/10), Image 2 (6/10)\n2. B: Image 1 (9/10), Image 2 (7/10)\n"
    kept = scores + "Total: Image 1: 8+9=17, Image 2: 6+7=13"
    other = scores + "Total: Image 1: 7+9=16, Image 2: 6+7=13"
    assert judge(thought(kept), IMAGES, 1) == Verdict("correct", "coherent", 1, mismatch=False)
    assert judge(thought(other), IMAGES, 1) == Verdict("correct", "coherent", 1, mismatch=True)


def test_without_any_score_that_can_be_read_there_is_no_mismatch():
    listed = "Style:\n- Image 1: 8\n- Image 2: 6\nTotal: Image 1: 8+9=17, Image 2: 6+7=13"
    assert judge(thought(listed), IMAGES, 1) == Verdict("correct", "coherent", 1)
    one = "Style: Image 2 (6/10), colour: Image 2 (7/10)\nTotal: Image 1: 8+9=17, Image 2: 6+7=13"
    assert judge(thought(one), IMAGES, 1).mismatch


def test_scores_between_a_stray_word_and_the_totals_are_compared():
    scores = (
        "I will total them. A: Image 1 (8/10), Image 2 (6/10), B: Image 1 (9/10), Image 2 (7/10)"
    )
    assert not judge(thought(f"{scores}\nImage 1: 8+9=17, Image 2: 6+7=13"), IMAGES, 1).mismatch
    assert judge(thought(f"{scores}\nImage 1: 8+8=16, Image 2: 6+7=13"), IMAGES, 1).mismatch


def test_totals_without_summands_cannot_mismatch():
    text = thought("A: Image 1 (8/10), Image 2 (6/10)\nTotal: Image 1: 9, Image 2: 6")
    assert judge(text, IMAGES, 1).mismatch is False


# --- the forms that real models write -------------------------------------------------------------


@pytest.mark.parametrize(
    "reasoning",
    [
        "Total score:\nImage 1: 9+8+8=25\nImage 2: 6+7+5=18",
        "Total score:\n- Image 1: 9 + 8 + 8 = 25\n- Image 2: 6 + 7 + 5 = 18",
        "**Total score:**\n**Image 1:** 9+8+8=**25**\n**Image 2:** 6+7+5=**18**",
        "### Total Scores\n* **Image 1**: 25\n* **Image 2**: 18",
        "Totals: Image 1 = 25, Image 2 = 18.",
        "Totals: Image 2: 18; Image 1: 25",
        "Total: Image 1 (9+8+8=25), Image 2 (6+7+5=18)",
        "Total: Image 1 (25) Image 2 (18)",
        "Total score:\nImage 1: 25/30\nImage 2: 18/30",
        "Total: Image 1: 9/10 + 8/10 + 8/10 = 25/30; Image 2: 6/10 + 7/10 + 5/10 = 18/30",
        "Total: Image 1: (9+8+8) = 25, Image 2: (6+7+5) = 18",
        "Image 1 total: 25\nImage 2 total: 18",
        "**Image 1 Total:** 25\n**Image 2 Total:** 18",
        "Image 1 total score: 9+8+8=25\nImage 2 total score: 6+7+5=18",
        "Image 1's total is 25. Image 2's total is 18.",
        "Image 1’s total score – 25\nImage 2’s total score – 18",
        "Total for Image 1: 25\nTotal for Image 2: 18",
        "TOTAL SCORE\nIMAGE 1: 25\nIMAGE 2: 18",
        "Total score：\nImage 1：9＋8＋8＝25\nImage 2：6＋7＋5＝18",
        "Total：Image １：２５，Image ２：１８",
        "总分：\n图像1：9+8+8=25\n图像2：6+7+5=18",
        "總分：圖片 1：25；圖片 2：18",
        "总分\n图1（25）\n图2（18）",
        "Total of all scores. Image 1 gets 25, Image 2 gets 18.",
        "| | Total |\n|---|---|\n| Image 1 | 25 |\n| Image 2 | 18 |",
        "| | Total score |\n|:---|---:|\n| **Image 1** | **25** |\n| **Image 2** | 18/30 |",
        "Total score - Image 1: 25/30\nTotal score - Image 2: 18/30",
        "Total score (out of 30):\nImage 1: 25 out of 30\nImage 2: 18 out of 30",
        "The total scores are as follows:\n\n- Image 1: 25\n- Image 2: 18",
        "Adding these up gives the totals:\nImage 1: 25 points\nImage 2: 18 pts",
        "Total score of Image 1 is 9+8+8=25 and that of Image 2 is 6+7+5=18.",
        "Total score:\nImage 1: 9 +\n8 +\n8\n= 25\nImage 2:\n6 + 7 + 5 = 18",
        "Total:\nImage 1: 9 (style) + 8 (look) + 8 = 25\nImage 2: 6 (style) + 7 (look) + 5 = 18",
        "Total:\nImage 1: 25 (9+8+8)\nImage 2: 18 = 6+7+5",
        "Total:\nImage 1: 25 (best)\nImage 2: 18",
        "Total:\nImage 1: $9+8+8=25$\nImage 2: \\(6+7+5=18\\)",
        "Total:\nImage 1: 9 + 8 + 8 = $\\boxed{25}$\nImage 2: $\\boxed{18}$",
        "Total:\nImage 1 → 25\nImage 2 -> 18",
        "Total:\nImage 1 − 25\nImage 2 ‑ 18",
        "Total: Image #1: 25, Image_2: 18",
        '{"total": {"Image 1": 25, "Image 2": 18}}',
        "Image 1 receives a total score of 25, while Image 2 receives a total score of 18.",
        "Image 1 totals 25; Image 2 totals to 18 points.",
        "Image 1:\n- Total: 25\nImage 2:\n- Total: 18",
        "Image 1 has a higher total (25) than Image 2. Total score: Image 2 (18), Image 1 (25).",
        "Overall score:\nImage 1: 9+8+8=25\nImage 2: 6+7+5=18",
        "Final scores: Image 1: 25, Image 2: 18",
        "总分：图1为25分，图2得18分",
        "图片1的总得分是9+8+8=25，图片2的总得分是6+7+5=18。",
        "In total, Image 1 has 25 points, while Image 2 has 18 points.",
        "In total it is close.\nTotal score:\nImage 1: 25\nImage 2: 18\nSo the total is clear.",
    ],
)
def test_forms_of_totals(reasoning):
    assert totals(reasoning) == (25, 18)
    assert coherence(reasoning, 1) == "coherent"
    assert coherence(reasoning, 2) == "contradicts"


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.layout}-{case.answer}")
def test_layouts_of_totals(case):
    task = TASKS["image_generation" if case.noun == "Image" else "video_generation"]
    assert judge(case.text, task, 1).coherence == case.finding


@pytest.mark.parametrize(
    ("correction", "corrected"),
    [
        ("Wait, Image 1: 9+9+9=27.", (27, 18)),
        ("Wait, the total for Image 2 is 28, not 18.", (25, 28)),
        ("Recount: Image 1: 9+8+8=25, Image 2: 9+9+9=27.", (25, 27)),
        ("Let me recalculate. Total: Image 1: 24, Image 2: 20.", (24, 20)),
        ("更正：图1：24，图2：20", (24, 20)),
        ("Wait: no.\nRecount: Image 1: 1, Image 2: 2.\nRecount: Image 1: 3, Image 2: 2.", (3, 2)),
        ("Actually Image 1 (8/10) has the better style than Image 2 (9/10).", (25, 18)),
        ("I double-checked, and it is right: Image 1 wins.", (25, 18)),
        ("People wait in both images.", (25, 18)),
    ],
)
def test_the_last_complete_statement_counts(correction, corrected):
    assert totals(f"Total:\nImage 1: 9+8+8=25\nImage 2: 6+7+5=18\n{correction}") == corrected


@pytest.mark.parametrize(
    ("stated", "finding"),
    [
        ("8.33+7.33+9=24.7", "coherent"),
        ("8.33+7.33+9=24.66", "coherent"),
        ("8.33+7.33+9=25", "coherent"),
        ("8.33+7.33+9=24.6", "wrong_sum"),
        ("8.33+7.33+9=24", "wrong_sum"),
        ("8+7+9=24.0", "coherent"),
        ("8+7+9=24.1", "wrong_sum"),
        ("8.25+8=16.3", "coherent"),
    ],
)
def test_a_sum_agrees_at_the_precision_that_is_written(stated, finding):
    assert coherence(f"Total: Image 1: {stated}, Image 2: 2+1=3") == finding


@pytest.mark.parametrize(
    "reasoning",
    [
        "| | N | Total |\n|---|---|---|\n| Image 1 | x | 3+5=7 |\n| Image 2 | y | 2+1=3 |",
        "### Image 1\nTotal: 3+5 = 7\n### Image 2\nTotal: 2+1 = 3",
        "Image 1: Fit 3 + Look 5 = 7\nImage 2: Fit 2 + Look 1 = 3",
    ],
)
def test_a_wrong_sum_is_found_in_every_layout(reasoning):
    assert coherence(reasoning) == "wrong_sum"


@pytest.mark.parametrize(
    ("reasoning", "unread"),
    [
        ("Total score:\nImage 2: 3+4=7", True),
        ("The left one has a total of 7, the right one of 17.", True),
        ("Left: 3+4=7, right: 8+9=17", True),
        ('{"left_total": 7, "right_total": 17}', True),
        ("左图总分7，右图总分17", True),
        ("Fit: Image 1 (3/10), Image 2 (8/10)", False),
        ("Total score:\nImage 1: 25\nImage 2: 18", False),
    ],
)
def test_totals_that_could_not_be_read_are_reported(reasoning, unread):
    text = thought(reasoning)
    assert has_unread_totals(text, judge(text, IMAGES, 1)) is unread
    assert has_unread_totals(reasoning, Verdict("unparsed", "", 0)) is False


@pytest.mark.parametrize(
    "reasoning",
    [
        "Image 1 and Image 2 both total 25.",
        "Total score: both images: 25/30",
        "Totals: Image 2 and Image 1: 9+8+8=25",
    ],
)
def test_one_total_for_both_is_a_tie(reasoning):
    assert totals(reasoning) == (25, 25)
    assert coherence(reasoning) == "tie"


def test_a_sum_behind_its_total_is_checked():
    assert coherence("Total: Image 1: 25 (9+8+9), Image 2: 18 (6+7+5)") == "wrong_sum"


def test_totals_of_nine_dimensions():
    assert totals("Total score: Image 1: 48/90; Image 2: 51/90") == (48, 51)


def test_decimals():
    text = "Total: Image 1: 8.5+9+7.25=24.75, Image 2: 0.1+0.2=0.3"
    assert totals(text) == (Decimal("24.75"), Decimal("0.3"))
    assert coherence(text) == "coherent"
    assert coherence(text.replace("=0.3", "=0.30")) == "coherent"
    assert coherence(text.replace("24.75", "24.7")) == "wrong_sum"


def test_extra_dimensions():
    assert judge(cot((8, 7, 9, 10, 6), (6, 7, 5, 9, 9)), IMAGES, 1) == Verdict(
        "correct", "coherent", 1
    )


def test_reordered_candidates():
    reasoning = (
        "1. A: Image 2 (6/10) - x; Image 1 (8/10) - y\n2. B: Image 2 (7/10); Image 1 (9/10)\n"
        "Total: Image 2: 6+7=13, Image 1: 8+9=17"
    )
    assert judge(thought(reasoning), IMAGES, 1) == Verdict("correct", "coherent", 1)


@pytest.mark.parametrize(
    "scores",
    [
        "Image 1 (8/10): x; Image 2 (6/10): y",
        "- Image 1 (8/10): x\n- Image 2 (6/10): y",
        "**Image 1** (8/10) x **Image 2** (6/10) y",
        "**Image 1 (8/10)**: x\n**Image 2 (6/10)**: y",
        "Image 1: 8/10, Image 2: 6/10",
        "Image 1 - 8 / 10. Image 2 - 6 / 10.",
        "Image 1 – score: 8/10. Image 2 – score: 6/10.",
        "Image 1 scores 8/10 and Image 2 gets 6/10",
        "Image 1（8/10）：x；Image 2（6/10）：y",
        "图像1（8/10），图像2（6/10）",
        "Image 1 (8.0/10), Image 2 (6/10)",
        "Image 1 sharp, well lit (8/10); Image 2 blurred (6/10)",
        "Image 1 receives an 8/10, Image 2 is rated 6/10",
        "Image 1: 8 out of 10, Image 2 (6 out of 10)",
        "图片1得8/10，图片2得6/10",
    ],
)
def test_forms_of_scores(scores):
    stated = "\nB: Both images (10/10)\nTotal: Image 1: 8+10=18, Image 2: 6+10=16"
    assert judge(thought(scores + stated), IMAGES, 1) == Verdict("correct", "coherent", 1)


@pytest.mark.parametrize(
    "both",
    [
        "Both images (10/10)",
        "Both Images: 10/10",
        "Both (10/10)",
        "Images 1 and 2 (10/10)",
        "Image 1 and Image 2: 10/10",
        "Image 2 and Image 1: 10/10",
        "Image 1 & 2 (10/10)",
    ],
)
def test_a_score_for_both_counts_for_each(both):
    reasoning = (
        f"A: {both} - fine\nB: Image 1 (8/10), Image 2 (6/10)\n"
        "Total: Image 1: 10+8=18, Image 2: 10+6=16"
    )
    assert judge(thought(reasoning), IMAGES, 1) == Verdict("correct", "coherent", 1)


def test_a_chain_of_thought_in_one_line():
    text = (
        "<think>A: Image 1 (8/10), Image 2 (6/10). B: Image 1 (9/10), Image 2 (7/10). Total score: "
        "Image 1: 8+9=17 Image 2: 6+7=13</think><answer>Image 1 is better</answer>"
    )
    assert judge(text, IMAGES, 1) == Verdict("correct", "coherent", 1)


def test_the_last_heading_counts_and_a_written_sum_before_a_bare_number():
    assert totals("Total: Image 1: 1, Image 2: 9\nFinal total: Image 1: 25, Image 2: 18") == (
        25,
        18,
    )
    restated = "Total:\nImage 1: 9+8+8=25\nImage 2: 6+7+5=18\nSo Image 1 (25) beats Image 2 (18)."
    assert totals(restated) == (25, 18)
    late = "Total: Image 1 3, Image 2 4. That is, Image 1: 9+8=17 and Image 2: 6+7=13"
    assert totals(late) == (17, 13)


@pytest.mark.parametrize("noun", ["Video", "Answer"])
def test_totals_of_the_other_tasks(noun):
    assert totals(f"Total score:\n{noun} 1: 9+8=17\n{noun} 2: 6+7=13", noun) == (17, 13)
    assert totals(f"Total score:\n{noun} 1: 9+8=17\n{noun} 2: 6+7=13", "Image") is None


def test_candidates_above_two_are_not_candidates():
    assert totals("Total: Image 1: 25, Image 12: 30, Image 2: 18") == (25, 18)
    assert totals("Total: Image 1: 25, Image 21: 30") is None


# --- where a response goes ------------------------------------------------------------------------


@pytest.mark.parametrize("finding", ["coherent", "no_totals"])
def test_trusted_right_answers_are_saved_as_correct(finding):
    assert destination(Verdict("correct", finding, 1)) == "correct"


@pytest.mark.parametrize("finding", ["wrong_sum", "contradicts", "tie"])
def test_right_answers_against_their_own_reasoning_are_not_unless_asked(finding):
    assert destination(Verdict("correct", finding, 1)) == "unusable"
    assert destination(Verdict("correct", finding, 1), allow_incoherent=True) == "correct"


@pytest.mark.parametrize("finding", ["coherent", "no_totals", "wrong_sum", "contradicts", "tie"])
def test_every_wrong_answer_is_saved_as_incorrect(finding):
    assert destination(Verdict("incorrect", finding, 1)) == "incorrect"


@pytest.mark.parametrize("name", ["unparsed", "truncated"])
def test_an_answer_that_cannot_be_read_is_unusable(name):
    assert destination(Verdict(name, "", 0), allow_incoherent=True) == "unusable"


# --- properties -----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "<think>", "</think>", "<answer>", "</answer>", "Image", "Video", "1", "2", "Image 1",
        "Image 2:", "total", "Total:", "总分", "图像", "both", "images", "'s", "8/10", "1.5",
        "9+8=17", "+", "=", ".", "(", ")", "*", "：", "＋", "٣", "²", "\x00", "\u0301", "\ud800",
        " ", "\n", "999999999999",
    ]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(PIECES, max_size=60).map("".join),
    st.lists(PIECES, max_size=60).map(" ".join),
)


ANY_TASK = st.sampled_from(list(TASKS.values()))


@given(TEXTS, ANY_TASK, st.sampled_from([1, 2]), st.text(max_size=8))
def test_no_text_crashes_it(text, task, label, finish_reason):
    for completion in (text, f"<think>{text}</think><answer>{task.answers[0]}</answer>"):
        found = judge(completion, task, label, finish_reason)
        assert found.verdict in ("correct", "incorrect", "unparsed", "truncated")
        assert (found.answer == 0) == (found.verdict in ("unparsed", "truncated"))
        assert (found.coherence == "") == (found.answer == 0)


SPACE = st.text(" \t\n\r\u00a0\u3000", max_size=6)


@given(
    st.lists(PIECES, max_size=40).map(" ".join),
    st.tuples(SPACE, SPACE, SPACE, SPACE, SPACE),
    ANY_TASK,
)
def test_white_space_around_the_blocks_changes_nothing(reasoning, space, task):
    better = task.answers[0]
    plain = f"<think>{reasoning}</think><answer>{better}</answer>"
    a, b, c, d, e = space
    wide = f"{a}<think>{reasoning}</think>{b}<answer>{c}{better}{d}</answer>{e}"
    assert judge(wide, task, 1) == judge(plain, task, 1)


SCORES = st.lists(st.integers(1, 10), min_size=1, max_size=6)


@given(SCORES, SCORES, ANY_TASK, st.sampled_from([1, 2]), st.data())
def test_other_white_space_in_the_reasoning_changes_nothing(first, second, task, answer, data):
    size = min(len(first), len(second))
    text = cot(first[:size], second[:size], answer, task.noun)
    reasoning = text[len("<think>") : text.index("</think>")]
    space = st.text(" \t\n\r\u00a0\u3000", min_size=1, max_size=4)
    other = re.sub(r"\s+", lambda _: data.draw(space), reasoning)
    assert judge(text.replace(reasoning, other), task, 1) == judge(text, task, 1)


TOTAL_FORMS = st.sampled_from(
    [
        "Total: N 1: {a}, N 2: {b}",
        "N 1 total: {a}\nN 2 total: {b}",
        "N 1's total is {a}, while N 2's total is {b}.",
        "**Total score**\n- **N 1**: {a}/90\n- **N 2**: {b}/90",
        "| | Total |\n|---|---|\n| N 1 | {a} |\n| N 2 | {b} |",
        "总分：N 1 为 {a} 分，N 2 为 {b} 分",
        "In total, both have merits.\nTotal score: N 1 ({a}) N 2 ({b})",
    ]
)


def swap(text: str, noun: str) -> str:
    one, two = f"{noun} 1", f"{noun} 2"
    return text.replace(one, "\0").replace(two, one).replace("\0", two)


@given(TOTAL_FORMS, st.integers(1, 90), st.integers(1, 90), ANY_TASK, st.sampled_from([1, 2]))
def test_swapping_the_candidates_swaps_what_the_totals_say(form, a, b, task, answer):
    reasoning = form.replace("N ", f"{task.noun} ").format(a=a, b=b)
    text = thought(reasoning, answer, task.noun)
    before, after = judge(text, task, answer), judge(swap(text, task.noun), task, 3 - answer)
    assert after.answer == 3 - before.answer
    expected = "tie" if a == b else "coherent" if (a > b) == (answer == 1) else "contradicts"
    assert before.coherence == after.coherence == expected


@given(st.data(), SCORES, ANY_TASK)
def test_swapping_the_candidates_of_a_consistent_text_swaps_its_answer(data, first, task):
    second = data.draw(st.lists(st.integers(1, 10), min_size=len(first), max_size=len(first)))
    answer = 1 if sum(first) >= sum(second) else 2
    text = cot(first, second, answer, task.noun)
    before, after = judge(text, task, answer), judge(swap(text, task.noun), task, 3 - answer)
    assert after.answer == 3 - before.answer
    assert before.verdict == after.verdict == "correct"
    expected = "tie" if sum(first) == sum(second) else "coherent"
    assert before.coherence == after.coherence == expected
    assert not before.mismatch
    assert not after.mismatch


@pytest.mark.parametrize(
    "unit",
    [
        "1", "1+", "1.", "1/", "1+1+1 ", " ", " \n", "total ", "Image 1 ", "Image 1 total ",
        "Image 1 total score is the sum of ", "Total: Image 1 1+1 ", "Image 1: 1+1=",
        "Both images ", "both ", "Image 1 and ", "(a) ", "1 (a) + ", "Total: Image 1 3 Image 2 4 ",
        "Image 1 (8/10) ", "images 1 and ", "Image ", "Image 1's ", "Image 1 (((((", "* ",
        "<think>", "</think>", "</think><answer>", "</think><answer></answer>", "总分图",
        "\u0301\u0327", "１＋", "| Image 1 | Image 2 |\n", "| Total | 1 |\n", "Total: 7 vs ",
        "1 + a ", "Total: 7 vs 9\nImage 1\n", "Image 1: 1+1=2 Image 1 3/10 ",
        "Image 1: a 1 + b ", "wait ", "recount: Image 1: 1+1=2 ", "sum (", "a", "Image 1\n", "\\",
        "Total: 7\nImage 1 vs Image 2\n", "1) + (", "in all, ", "** *", "first image ", "= ", "\n",
    ],
)  # fmt: skip
# A pattern that goes back and forth over the text would take hours here, not a second.
@pytest.mark.timeout(60)
def test_200_kb_of_anything_are_judged(unit):
    long = unit * (200_000 // len(unit))
    for head in ("", "Total: Image 1 ", "Total: Image 1: 1+1"):
        text = f"<think>{head}{long}</think><answer>Image 1 is better</answer>"
        clean = not any(tag in unit for tag in ("<think>", "</think>", "<answer>"))
        assert bool(judge(text, IMAGES, 1).answer) == clean
        assert judge(f"{text}{long}x", IMAGES, 1).verdict == "unparsed"


def test_a_sum_with_endless_digits_is_no_total():
    assert coherence(f"Total: Image 1: {'9' * 1_100_000}+1=2, Image 2: 3") == "no_totals"


# --- published data -------------------------------------------------------------------------------


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not on this machine")
def test_the_published_pairs_give_the_counts_of_the_design():
    rows = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    # The label does not matter for the findings.
    found = {side: [judge(row[side], IMAGES, 1) for row in rows] for side in ("chosen", "rejected")}
    counts = {
        side: Counter(v.coherence or v.verdict for v in verdicts)
        for side, verdicts in found.items()
    }
    assert counts["chosen"] == {"coherent": 139, "contradicts": 42, "tie": 19}
    assert counts["rejected"] == {
        "coherent": 143, "wrong_sum": 24, "unparsed": 17, "no_totals": 8,
        "contradicts": 6, "tie": 2,
    }  # fmt: skip
    assert sum(v.mismatch for v in found["rejected"]) == 80
    assert not any(v.mismatch for v in found["chosen"])
    assert sum(v.answer == 2 for v in found["chosen"]) == 140
