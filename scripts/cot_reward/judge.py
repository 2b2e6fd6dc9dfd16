"""The judge: a completion's text -> Verdict. Pure, strict, never guesses an answer.

Two findings are independent of each other: the verdict (is the answer right?) and the coherence
(do the scores, sums and totals of the reasoning support the answer that was given?).
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from cot_reward.records import Verdict
from cot_reward.tasks import Task

# Raised when a finding changes for some text, so that stored findings can be judged again.
VERSION = 1

_FORM = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Reasons for which a server ends generation by itself; "" is a published row that has none.
_ENDED = ("stop", "")

# Bounded, so that sums of scores are exact in Decimal whatever a text holds.
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
# A score's maximum, as in 8/10, is not part of the score.
_TERM = rf"{_NUMBER}(?:\s*/\s*\d+)?"
_SUM = rf"{_TERM}(?:\s*\+\s*{_TERM})+"
# The heading of the totals: "Total score:", "**Totals**", "总分", ...; the last one counts.
_TOTAL_WORD = re.compile(r"\btotals?\b|总分|總分|总计|總計|合计|合計", re.IGNORECASE)
# Full-width ASCII and the ideographic space. (NFKC does this too, but takes quadratic time on long
# runs of combining marks, and makes a summand of the exponent in "8²".)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_NOUNS = {
    "Image": "Image|图像|图片|圖像|圖片|图",
    "Video": "Video|视频|影片",
    "Answer": "Answer|回答|答案",
}


@dataclass(frozen=True)
class Totals:
    """What the reasoning states for one candidate: its total, and the summands when written."""

    total: Decimal
    summands: tuple[Decimal, ...]

    @property
    def adds_up(self) -> bool:
        return not self.summands or sum(self.summands) == self.total


@dataclass(frozen=True)
class _Patterns:
    total: re.Pattern[str]
    score: re.Pattern[str]
    named_before: re.Pattern[str]


@lru_cache(maxsize=8)
def _patterns(noun: str) -> _Patterns:
    name = rf"(?:{_NOUNS[noun]})"
    candidate = rf"{name}\s*(?P<index>[12])(?!\d)(?:['’]s)?"
    # Between a candidate and its score or total: markup, a colon, "total score", "is", no more.
    words = r"\b(?:total|scores?|is|gets|has|of|a|the|sum)\b|总分|得分"
    filler = rf"(?:[\s*_`|:=()\[\]>~–—-]|{words})*?"
    total = (
        rf"{candidate}{filler}"
        rf"(?:(?P<sum>{_SUM})[\s)]*=[\s*(]*(?P<of_sum>{_NUMBER})|(?P<plain>{_NUMBER}))"
        r"(?!\d|\.\d|\s*\+)"
    )
    # "Both images (10/10)", "Images 1 and 2 (8/10)" and "Image 1 and Image 2: 8/10" score both.
    both = rf"both(?:\s+{name}s?)?|{name}s?\s*1\s*(?:and|&|,|/|和)\s*(?:{name}\s*)?2"
    # "Image 1 blurred, dull (4/10)": a remark may come before the bracket, on the same line.
    lead = rf"(?:{filler}|[^()\n;/\d]{{1,60}}\()"
    score = rf"(?:(?P<both>{both})|{candidate}){lead}(?P<score>{_NUMBER})\s*/\s*\d+"
    return _Patterns(
        re.compile(total, re.IGNORECASE),
        re.compile(score, re.IGNORECASE),
        re.compile(rf"{candidate}[\s*_`:(–—-]*$", re.IGNORECASE),
    )


def _numbers(text: str) -> tuple[Decimal, ...]:
    return tuple(Decimal(number) for number in re.findall(rf"({_NUMBER})(?:\s*/\s*\d+)?", text))


def totals_in(reasoning: str, noun: str) -> tuple[dict[int, Totals], str]:
    """The stated totals by candidate (1, 2), and the text before them.

    They stand behind the last word that speaks of totals and is followed by both candidates with
    a number; without it nothing is read as a total. Full-width digits and signs count as ASCII.
    """
    text = reasoning.translate(_FULL_WIDTH)
    patterns = _patterns(noun)
    # One pass over the text, however many headings there are.
    stated = list(patterns.total.finditer(text))
    last_of_both = min(
        max((match.start() for match in stated if match["index"] == index), default=-1)
        for index in "12"
    )
    for heading in reversed(list(_TOTAL_WORD.finditer(text))):
        # In "Image 1 total: 25" the candidate stands before the word.
        named = patterns.named_before.search(text, max(0, heading.start() - 40), heading.start())
        start = named.start() if named else heading.start()
        if start > last_of_both:
            continue
        found: dict[int, Totals] = {}
        for match in stated:
            if match.start() < start:
                continue
            index = int(match["index"])
            summands = _numbers(match["sum"]) if match["sum"] else ()
            # The first statement counts, but one that writes out its sum before one that does not.
            if index not in found or (summands and not found[index].summands):
                found[index] = Totals(Decimal(match["of_sum"] or match["plain"]), summands)
        return found, text[:start]
    return {}, text


def _scores(text: str, noun: str) -> dict[int, list[Decimal]]:
    """The scores out of some maximum that the text gives to each candidate, in its order."""
    scores: dict[int, list[Decimal]] = {1: [], 2: []}
    for match in _patterns(noun).score.finditer(text):
        for index in (1, 2) if match["both"] else (int(match["index"]),):
            scores[index].append(Decimal(match["score"]))
    return scores


def _coherence(reasoning: str, answer: int, noun: str) -> tuple[str, bool]:
    totals, before = totals_in(reasoning, noun)
    if not totals:
        return "no_totals", False
    scores = _scores(before, noun)
    mismatch = any(
        stated.summands and sorted(stated.summands) != sorted(scores[index])
        for index, stated in totals.items()
    )
    if not all(stated.adds_up for stated in totals.values()):
        return "wrong_sum", mismatch
    first, second = totals[1].total, totals[2].total
    if first == second:
        return "tie", mismatch
    return ("coherent" if (1 if first > second else 2) == answer else "contradicts"), mismatch


def judge(text: str, task: Task, label: int, finish_reason: str = "") -> Verdict:
    """Judge one completion against the label as presented (1 or 2).

    Well-formed is: one think block, then one answer block that holds exactly one of the task's
    two answer strings, white space around them, and generation ended by itself.
    """
    if finish_reason == "length":
        return Verdict("truncated", "", 0)
    # Tags are counted first: with one of each the form is matched in linear time.
    once = all(text.count(tag) == 1 for tag in _TAGS)
    form = _FORM.fullmatch(text) if once and finish_reason in _ENDED else None
    if form is None or form[2].strip() not in task.answers:
        return Verdict("unparsed", "", 0)
    answer = task.answers.index(form[2].strip()) + 1
    coherence, mismatch = _coherence(form[1], answer, task.noun)
    return Verdict("correct" if answer == label else "incorrect", coherence, answer, mismatch)


# What can be found of the coherence of a well-formed text.
FINDINGS = ("coherent", "no_totals", "tie", "contradicts", "wrong_sum")
# A right answer teaches only when its own reasoning does not speak against it.
TRUSTED = FINDINGS[:2]


def destination(verdict: Verdict, allow_incoherent: bool = False) -> str:
    """The file a judged response belongs to: "correct", "incorrect" or "unusable"."""
    if verdict.verdict == "incorrect":
        return "incorrect"
    if verdict.verdict == "correct" and (allow_incoherent or verdict.coherence in TRUSTED):
        return "correct"
    return "unusable"
