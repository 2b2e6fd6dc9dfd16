"""The judge: a completion's text -> Verdict. Pure, strict, never guesses an answer.

Two findings are independent of each other: the verdict (is the answer right?) and the coherence
(do the scores, sums and totals of the reasoning support the answer that was given?).
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from cot_reward.records import Task, Verdict

# Raised when a finding changes for some text, so that stored findings can be judged again.
VERSION = 2

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Reasons for which a server ends generation by itself; "" is a published row that has none.
_ENDED = ("stop", "")

# Bounded, so that sums of scores are exact in Decimal whatever a text holds.
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
# A score's maximum, as in 8/10 and 8 out of 10, is not part of the score.
_MAXIMUM = r"\s*(?:/|\bout\s+of\b)\s*\d{1,9}"
# A summand may carry what it is for: 8 (aesthetics).
_TERM = rf"{_NUMBER}(?:{_MAXIMUM})?(?:\s*\([^()\d]{{1,40}}\))?"
_SUM = rf"{_TERM}(?:\s*\+\s*{_TERM})+"
_EQUALS = r"(?:=|→|⇒|->)"
# Markup around a number: bold, brackets, LaTeX ("$\boxed{25}$").
_MARK = r"(?:[\s*_`(){}$\\]|\bboxed\b)*"
# A number before these is no total but part of something longer: of a number, a calculation, a pair
# ("25 and 18"), a table's row with more columns, or a count of things ("3 cats").
_GOES_ON = (
    r"\d|[.,]\d|[^\S\n]+\d|[\s*)]*[+×÷]|\s*[-−–*x/]\s*\d|\s*(?:[,;:&]|\b(?:and|vs|to)\b\.?)\s*\d"
    r"|[\s*]*\|[\s*]*\d"
    r"|\s+(?!(?:image|video|answer|points?|pts|and|but|while|whereas|vs|versus|against|so|in|is|for|to"
    r"|with|which|since|because|as)\b)(?-i:[a-z])"
)
# The heading of the totals: "Total score:", "**Totals**", "总分", ...; the last one counts.
# Here and below a look at the first letter comes first: it halves the time that a text takes.
_TOTAL_WORD = re.compile(
    r"(?=[tof总總合])(?:\b(?:total(?:s|ed|l?ing)?|(?:overall|final)\s+scores?)\b"
    r"|[总總]得?分|总评分|[总總合][计計])",
    re.IGNORECASE,
)
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
    """What a text states for one candidate: its total, the summands when written out, and where."""

    total: Decimal
    summands: tuple[Decimal, ...]
    start: int

    @property
    def adds_up(self) -> bool:
        return not self.summands or sum(self.summands) == self.total


@dataclass(frozen=True)
class _Patterns:
    total: re.Pattern[str]
    score: re.Pattern[str]
    link: re.Pattern[str]


@lru_cache(maxsize=8)
def _patterns(noun: str) -> _Patterns:
    name = rf"(?:{_NOUNS[noun]})"
    # "Both images (10/10)", "Images 1 and 2 (8/10)" and "Image 1 and Image 2: 8/10" score both.
    also = rf"\s*(?:and|&|,|和)\s*(?:{name}\s*)?"
    pair = rf"{name}s?\s*(?:1{also}2|2{also}1)(?!\d)(?:\s+both\b)?"
    both = rf"\bboth\b(?:\s+{name}s?)?|{pair}"
    candidate = rf"{name}\s*[#_-]?(?P<index>[12])(?!\d)(?:['’]s)?"
    initials = "".join(word[0] for word in _NOUNS[noun].split("|"))
    who = rf"(?=[b{initials}])(?:(?P<both>{both})|{candidate})"
    # Between a candidate and its score or total: markup, a colon, "total score", "is", no more.
    # A minus that touches a number is its sign.
    words = (
        r"\b(?:total(?:s|ed|l?ing)?|scores?|sum|rating|rated|assigned|is|gets|has|have|receives?"
        r"|earns?|comes|of|an?|the|to|with|boxed)\b|总得?分|總得?分|得分?|为|為|是|共|的"
    )
    filler = rf"(?:[\s*_`|:=()\[\]{{}}\"$\\~>→⇒–—‑]|[-−](?!\d)|{words})*?"
    stated = rf"(?P<sum>{_SUM}){_MARK}{_EQUALS}{_MARK}(?P<of_sum>{_NUMBER})(?:{_MAXIMUM})?"
    # "25", "25/30 (best)", "25 (9+8+8)"
    plain = (
        rf"(?P<plain>{_NUMBER})(?:{_MAXIMUM})?"
        rf"(?:\s*[=(]\s*(?P<parts>{_SUM})|\s*\([^()\d]{{1,40}}\))?"
    )
    total = rf"{who}{filler}(?>{stated}|{plain})(?!{_GOES_ON})"
    # "Image 1 blurred, dull (4/10)": a remark may come before the bracket, on the same line.
    score = rf"{who}(?:{filler}|[^()\n;/\d]{{1,60}}\()(?P<score>{_NUMBER}){_MAXIMUM}"
    # Between the word for totals and the first of them: " score for ", "s (out of 30):\n- "; or
    # the rest of a phrase that ends in a colon.
    glue = (
        rf"(?:\([^()]{{1,40}}\)|[\s*_`|:=\[\](){{}}\"$\\~>.,–—-]|{both}|{name}s?"
        r"|\b(?:scores?|points?|of|for|the|each|all|is|are)\b)*+"
    )
    link = rf"{glue}|[^.,;:!?。、\d]{{0,60}}:[\s*_`|\[({{\"$–—-]*"
    return _Patterns(*(re.compile(part, re.IGNORECASE) for part in (total, score, link)))


def _headings(text: str) -> list[re.Match[str]]:
    """The words that speak of totals, in their order."""
    if not text.isascii():
        return list(_TOTAL_WORD.finditer(text))
    # Few places can be one: found by plain search, which takes a tenth of the time.
    small, starts = text.lower(), []
    for word in ("total", "overall", "final"):
        at = small.find(word)
        while at >= 0:
            starts.append(at)
            at = small.find(word, at + 1)
    matches = (_TOTAL_WORD.match(text, at) for at in sorted(starts))
    return [match for match in matches if match]


_SUMMAND = re.compile(rf"({_NUMBER})(?:{_MAXIMUM})?")


def _numbers(text: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, _SUMMAND.findall(text)))


def _candidates(match: re.Match[str]) -> tuple[int, ...]:
    return (1, 2) if match["both"] else (int(match["index"]),)


def totals_in(reasoning: str, noun: str) -> tuple[dict[int, Totals], str]:
    """The stated totals by candidate (1, 2), and the text before them.

    They stand behind the last word that speaks of totals and is followed by both candidates with
    a number; without it nothing is read as a total. Full-width digits and signs count as ASCII.

    Scores may follow such a word too ("In total, both are good. Style: Image 1 (9/10), ..."). So
    bare numbers are totals only when the first of them is what the word announces, and no
    candidate has two that differ. A sum that is written out needs no such proof.
    """
    text = reasoning if reasoning.isascii() else reasoning.translate(_FULL_WIDTH)
    headings = _headings(text)
    patterns = _patterns(noun)
    # What stands far above the first of them is no total: most of a text is not searched.
    near = max(0, headings[0].start() - 200) if headings else len(text)
    stated = list(patterns.total.finditer(text, near))
    found: dict[int, Totals] = {}
    varied: set[int] = set()
    start = len(text)
    # One pass from the end of the text, however many headings there are.
    for heading in reversed(headings):
        # In "Image 1 total: 25" the word stands inside of what it announces.
        while stated and stated[-1].end() > heading.start():
            match = stated.pop()
            start = match.start()
            summands = _numbers(match["sum"] or match["parts"] or "")
            new = Totals(Decimal(match["of_sum"] or match["plain"]), summands, start)
            for index in _candidates(match):
                old = found.get(index, new)
                if not summands and old.total != new.total:
                    varied.add(index)
                # The first statement counts, but one that writes out its sum before a bare one.
                if summands or not old.summands:
                    found[index] = new
        announced = start <= heading.end() or (
            start - heading.end() <= 120
            and patterns.link.fullmatch(text, heading.end(), start) is not None
        )
        if len(found) == 2 and all(
            one.summands or (announced and index not in varied) for index, one in found.items()
        ):
            return found, text[: min(one.start for one in found.values())]
    return {}, text


def _scores(text: str, noun: str) -> dict[int, list[Decimal]]:
    """The scores out of some maximum that the text gives to each candidate, in its order."""
    scores: dict[int, list[Decimal]] = {1: [], 2: []}
    for match in _patterns(noun).score.finditer(text):
        for index in _candidates(match):
            scores[index].append(Decimal(match["score"]))
    return scores


def _coherence(reasoning: str, answer: int, noun: str, mismatches: bool) -> tuple[str, bool]:
    totals, before = totals_in(reasoning, noun)
    if not totals:
        return "no_totals", False
    scores = _scores(before, noun) if mismatches else {}
    # Where no score could be read there is nothing to compare the summands with.
    mismatch = any(scores.values()) and any(
        stated.summands and sorted(stated.summands) != sorted(scores[index])
        for index, stated in totals.items()
    )
    if not all(stated.adds_up for stated in totals.values()):
        return "wrong_sum", mismatch
    first, second = totals[1].total, totals[2].total
    if first == second:
        return "tie", mismatch
    return ("coherent" if (1 if first > second else 2) == answer else "contradicts"), mismatch


def _blocks(text: str) -> tuple[str, str] | None:
    """The reasoning and the answer of a text that is a think and an answer block, and no more."""
    parts = []
    for tag in _TAGS:
        before, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(before)
    before, reasoning, between, answer = parts
    # An answer with a tag in it is none of the two anyway.
    if before.strip() or between.strip() or text.strip() or any(tag in reasoning for tag in _TAGS):
        return None
    return reasoning, answer.strip()


def judge(
    text: str, task: Task, label: int, finish_reason: str = "", *, mismatches: bool = True
) -> Verdict:
    """Judge one completion against the label as presented (1 or 2).

    `mismatches=False` leaves that finding out (False), which takes 6/10 of the time.

    Well-formed is: one think block, then one answer block that holds exactly one of the task's
    two answer strings, white space around them, and generation ended by itself.
    """
    if finish_reason == "length":
        return Verdict("truncated", "", 0)
    blocks = _blocks(text) if finish_reason in _ENDED else None
    if blocks is None or blocks[1] not in task.answers:
        return Verdict("unparsed", "", 0)
    answer = task.answers.index(blocks[1]) + 1
    coherence, mismatch = _coherence(blocks[0], answer, task.noun, mismatches)
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
