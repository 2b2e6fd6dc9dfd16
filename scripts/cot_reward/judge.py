"""The judge: the text of a completion -> Verdict. It is pure, and it never guesses an answer.

Two findings are independent of each other: the verdict (is the answer right?) and the coherence
(do the scores, sums and totals of the reasoning support the answer?). A wrong sum is found by
`StatedTotal.adds_up`, and the order in which findings count stands in `_coherence`.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from cot_reward.records import Task, Verdict

# Raise this when a finding changes for any text: stored findings are then judged again.
VERSION = 2

# The coherence of a well-formed text is one of these.
FINDINGS = ("coherent", "no_totals", "tie", "contradicts", "wrong_sum")
# A right answer is used for training only when its own reasoning does not speak against it.
TRUSTED = FINDINGS[:2]

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Finish reasons of a generation that ended by itself; published rows have no reason ("").
_ENDED_BY_ITSELF = ("stop", "")
# How far before the first heading a total is looked for ("Image 1 has a total of 25").
_MAX_CHARACTERS_BEFORE_HEADING = 200
# How far after its heading the first total may stand.
_MAX_CHARACTERS_AFTER_HEADING = 120


def judge(
    text: str, task: Task, label: int, finish_reason: str = "", *, mismatches: bool = True
) -> Verdict:
    """Judge one completion against the label as presented (1 or 2).

    A well-formed text is one think block, then one answer block. The answer block holds exactly
    one of the task's two answer strings. Only white space stands around them, and the generation
    ended by itself.

    `mismatches=False` does not look for mismatches (the finding is False) and takes 6/10 of the
    time.
    """
    if finish_reason == "length":
        return Verdict("truncated", "", 0)
    blocks = _blocks(text) if finish_reason in _ENDED_BY_ITSELF else None
    if blocks is None or blocks[1] not in task.answers:
        return Verdict("unparsed", "", 0)
    reasoning, answer_text = blocks
    answer = task.answers.index(answer_text) + 1
    totals, before = totals_in(reasoning, task.noun)
    return Verdict(
        "correct" if answer == label else "incorrect",
        _coherence(totals, answer),
        answer,
        mismatches and _mismatch(totals, before, task.noun),
    )


def destination(verdict: Verdict, allow_incoherent: bool = False) -> str:
    """The file that a judged response belongs to: "correct", "incorrect" or "unusable"."""
    if verdict.verdict == "incorrect":
        return "incorrect"
    if verdict.verdict == "correct" and (allow_incoherent or verdict.coherence in TRUSTED):
        return "correct"
    return "unusable"


def _blocks(text: str) -> tuple[str, str] | None:
    """The reasoning and the answer; None unless the text is one think and one answer block."""
    parts = []
    for tag in _TAGS:
        before, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(before)
    before, reasoning, between, answer = parts
    # An answer with a tag in it needs no check: it is neither of the two answer strings.
    if before.strip() or between.strip() or text.strip() or any(tag in reasoning for tag in _TAGS):
        return None
    return reasoning, answer.strip()


# --- coherence ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatedTotal:
    """The total that a text states for one candidate.

    `summands` are the numbers of the sum, () when it is not written out. `start` is the place in
    the text.
    """

    total: Decimal
    summands: tuple[Decimal, ...]
    start: int

    @property
    def adds_up(self) -> bool:
        return not self.summands or sum(self.summands) == self.total


def _coherence(totals: dict[int, StatedTotal], answer: int) -> str:
    """One of FINDINGS. A wrong sum comes first: wrong totals support no answer."""
    if not totals:
        return "no_totals"
    if not all(stated.adds_up for stated in totals.values()):
        return "wrong_sum"
    first, second = totals[1].total, totals[2].total
    if first == second:
        return "tie"
    return "coherent" if (1 if first > second else 2) == answer else "contradicts"


def _mismatch(totals: dict[int, StatedTotal], before: str, noun: str) -> bool:
    """Whether the summands of a total are not the scores that the text before the totals gives."""
    scores = _scores(before, noun) if totals else {}
    # Without a readable score there is nothing to compare the summands with.
    return any(scores.values()) and any(
        stated.summands and sorted(stated.summands) != sorted(scores[candidate])
        for candidate, stated in totals.items()
    )


def totals_in(reasoning: str, noun: str) -> tuple[dict[int, StatedTotal], str]:
    """The stated totals by candidate (1, 2; empty when not both are stated), and the text before.

    Totals stand after the last heading ("Total score", "总分", ...) that is followed by a number
    for both candidates. Without a heading no number is read as a total. Full-width digits and
    signs count as ASCII.

    Scores may follow a heading, too ("In total, both are good. Style: Image 1 (9/10), ..."). So
    bare numbers are totals only when the heading announces the first of them, and no candidate has
    two different ones. A sum that is written out is a total without this proof.
    """
    text = reasoning if reasoning.isascii() else reasoning.translate(_FULL_WIDTH)
    headings = _headings(text)
    if not headings:
        return {}, text
    patterns = _patterns(noun)
    # A number far before the first heading is no total, so most of a text is not searched.
    search_start = max(0, headings[0].start() - _MAX_CHARACTERS_BEFORE_HEADING)
    statements = list(patterns.total.finditer(text, search_start))
    found: dict[int, StatedTotal] = {}
    ambiguous: set[int] = set()
    start = len(text)
    # One pass from the end of the text, however many headings there are.
    for heading in reversed(headings):
        # In "Image 1 total: 25" the heading stands inside the statement that it announces.
        while statements and statements[-1].end() > heading.start():
            start = statements[-1].start()
            _add_statement(statements.pop(), found, ambiguous)
        announced = start <= heading.end() or (
            start - heading.end() <= _MAX_CHARACTERS_AFTER_HEADING
            and patterns.lead_in.fullmatch(text, heading.end(), start) is not None
        )
        if len(found) == 2 and all(
            stated.summands or (announced and candidate not in ambiguous)
            for candidate, stated in found.items()
        ):
            return found, text[: min(stated.start for stated in found.values())]
    return {}, text


def _add_statement(
    match: re.Match[str], found: dict[int, StatedTotal], ambiguous: set[int]
) -> None:
    """Add a statement that stands before all statements in `found`.

    The first statement of a candidate counts, but a written sum counts before a bare number.
    """
    summands = tuple(map(Decimal, _SUMMAND.findall(match["sum"] or match["parts"] or "")))
    new = StatedTotal(Decimal(match["of_sum"] or match["plain"]), summands, match.start())
    for candidate in _candidates(match):
        later = found.get(candidate, new)
        if not summands and later.total != new.total:
            ambiguous.add(candidate)
        if summands or not later.summands:
            found[candidate] = new


def _headings(text: str) -> list[re.Match[str]]:
    """The headings of totals, in their order."""
    if not text.isascii():
        return list(_HEADING.finditer(text))
    # A plain search finds the few possible places in a tenth of the pattern's time.
    small, starts = text.lower(), []
    for word in ("total", "overall", "final"):
        at = small.find(word)
        while at >= 0:
            starts.append(at)
            at = small.find(word, at + 1)
    matches = (_HEADING.match(text, at) for at in sorted(starts))
    return [match for match in matches if match]


def _scores(text: str, noun: str) -> dict[int, list[Decimal]]:
    """The scores with a maximum (8/10) that the text gives to each candidate, in their order."""
    scores: dict[int, list[Decimal]] = {1: [], 2: []}
    for match in _patterns(noun).score.finditer(text):
        for candidate in _candidates(match):
            scores[candidate].append(Decimal(match["score"]))
    return scores


def _candidates(match: re.Match[str]) -> tuple[int, ...]:
    """The candidates that a statement or a score is about."""
    return (1, 2) if match["both"] else (int(match["index"]),)


# --- patterns -------------------------------------------------------------------------------------

# Bounded, so that sums of scores are exact in Decimal whatever a text holds.
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
# The maximum in 8/10 and 8 out of 10 is not part of the score.
_MAXIMUM = r"\s*(?:/|\bout\s+of\b)\s*\d{1,9}"
# A summand may say what it is for: 8 (aesthetics).
_TERM = rf"{_NUMBER}(?:{_MAXIMUM})?(?:\s*\([^()\d]{{1,40}}\))?"
_SUM = rf"{_TERM}(?:\s*\+\s*{_TERM})+"
_SUMMAND = re.compile(rf"({_NUMBER})(?:{_MAXIMUM})?")
_EQUALS = r"(?:=|→|⇒|->)"
# Markup around a number: bold, brackets, LaTeX ("$\boxed{25}$").
_MARKUP = r"(?:[\s*_`(){}$\\]|\bboxed\b)*"
# A number before one of these is not a total. It is part of a longer number, of a calculation, of a
# pair ("25 and 18") or of a table's row with more columns, or it counts things ("3 cats").
_CONTINUATION = (
    r"\d|[.,]\d|[^\S\n]+\d|[\s*)]*[+×÷]|\s*[-−–*x/]\s*\d|\s*(?:[,;:&]|\b(?:and|vs|to)\b\.?)\s*\d"
    r"|[\s*]*\|[\s*]*\d"
    r"|\s+(?!(?:image|video|answer|points?|pts|and|but|while|whereas|vs|versus|against|so|in|is|for|to"
    r"|with|which|since|because|as)\b)(?-i:[a-z])"
)
# The heading of the totals: "Total score:", "**Totals**", "总分", ...
# Here and below a look at the first letter comes first: it halves the time of a text.
_HEADING = re.compile(
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
class _Patterns:
    """The patterns for one noun.

    total: a candidate and its total
    score: a candidate and a score with a maximum
    lead_in: the text between a heading and the first total that it announces
    """

    total: re.Pattern[str]
    score: re.Pattern[str]
    lead_in: re.Pattern[str]


@lru_cache(maxsize=8)
def _patterns(noun: str) -> _Patterns:
    name = rf"(?:{_NOUNS[noun]})"
    # "Both images (10/10)", "Images 1 and 2 (8/10)" and "Image 1 and Image 2: 8/10" score both.
    conjunction = rf"\s*(?:and|&|,|和)\s*(?:{name}\s*)?"
    pair = rf"{name}s?\s*(?:1{conjunction}2|2{conjunction}1)(?!\d)(?:\s+both\b)?"
    both = rf"\bboth\b(?:\s+{name}s?)?|{pair}"
    single = rf"{name}\s*[#_-]?(?P<index>[12])(?!\d)(?:['’]s)?"
    initials = "".join(word[0] for word in _NOUNS[noun].split("|"))
    candidate = rf"(?=[b{initials}])(?:(?P<both>{both})|{single})"
    # Only this may stand between a candidate and its score or total: markup, a colon, "is", "total
    # score", ... A minus that touches a number is its sign.
    words = (
        r"\b(?:total(?:s|ed|l?ing)?|scores?|sum|rating|rated|assigned|is|gets|has|have|receives?"
        r"|earns?|comes|of|an?|the|to|with|boxed)\b|总得?分|總得?分|得分?|为|為|是|共|的"
    )
    filler = rf"(?:[\s*_`|:=()\[\]{{}}\"$\\~>→⇒–—‑]|[-−](?!\d)|{words})*?"
    # "9+8+8=25"
    written_sum = rf"(?P<sum>{_SUM}){_MARKUP}{_EQUALS}{_MARKUP}(?P<of_sum>{_NUMBER})(?:{_MAXIMUM})?"
    # "25", "25/30 (best)", "25 (9+8+8)"
    bare = (
        rf"(?P<plain>{_NUMBER})(?:{_MAXIMUM})?"
        rf"(?:\s*[=(]\s*(?P<parts>{_SUM})|\s*\([^()\d]{{1,40}}\))?"
    )
    total = rf"{candidate}{filler}(?>{written_sum}|{bare})(?!{_CONTINUATION})"
    # "Image 1 blurred, dull (4/10)": a remark may come before the bracket, on the same line.
    score = rf"{candidate}(?:{filler}|[^()\n;/\d]{{1,60}}\()(?P<score>{_NUMBER}){_MAXIMUM}"
    # " score for ", "s (out of 30):\n- "; or the rest of a phrase that ends in a colon.
    glue = (
        rf"(?:\([^()]{{1,40}}\)|[\s*_`|:=\[\](){{}}\"$\\~>.,–—-]|{both}|{name}s?"
        r"|\b(?:scores?|points?|of|for|the|each|all|is|are)\b)*+"
    )
    lead_in = rf"{glue}|[^.,;:!?。、\d]{{0,60}}:[\s*_`|\[({{\"$–—-]*"
    return _Patterns(*(re.compile(part, re.IGNORECASE) for part in (total, score, lead_in)))
