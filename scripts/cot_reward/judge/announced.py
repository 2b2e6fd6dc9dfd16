"""The first reader of totals: the form that the prompt asks for, fast.

A heading, then each candidate with its total. The scores before the totals are read here, too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from cot_reward.judge.stated import (
    CONTINUATION,
    EQUALS,
    HEADING,
    MAXIMUM,
    NOUNS,
    NUMBER,
    SUMMAND,
    WRITTEN_SUM,
    StatedTotal,
)

# How far before the first heading a total is looked for ("Image 1 has a total of 25").
_MAX_CHARACTERS_BEFORE_HEADING = 200
# How far after its heading the first total may stand.
_MAX_CHARACTERS_AFTER_HEADING = 120
# Markup around a number: bold, brackets, LaTeX ("$\boxed{25}$").
_MARKUP = r"(?:[\s*_`(){}$\\]|\bboxed\b)*"


def announced_totals(text: str, noun: str) -> tuple[dict[int, StatedTotal], str]:
    """The totals in the form that the prompt asks for, and the text before them.

    Totals stand after the last heading ("Total score", "总分", ...) that is followed by a number
    for both candidates. Without a heading no number is read as a total.

    Scores may follow a heading, too ("In total, both are good. Style: Image 1 (9/10), ..."). So
    bare numbers are totals only when the heading announces the first of them, and no candidate has
    two different ones. A sum that is written out is a total without this proof.
    """
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
    summands = tuple(map(Decimal, SUMMAND.findall(match["sum"] or match["parts"] or "")))
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
        return list(HEADING.finditer(text))
    # A plain search finds the few possible places in a tenth of the pattern's time.
    small, starts = text.lower(), []
    for word in ("total", "overall", "final"):
        at = small.find(word)
        while at >= 0:
            starts.append(at)
            at = small.find(word, at + 1)
    matches = (HEADING.match(text, at) for at in sorted(starts))
    return [match for match in matches if match]


def scores_in(text: str, noun: str) -> dict[int, list[Decimal]]:
    """The scores with a maximum (8/10) that the text gives to each candidate, in their order."""
    scores: dict[int, list[Decimal]] = {1: [], 2: []}
    for candidates, score, _ in score_places(text, noun):
        for candidate in candidates:
            scores[candidate].append(score)
    return scores


def score_places(
    text: str, noun: str
) -> Iterator[tuple[tuple[int, ...], Decimal, tuple[int, int]]]:
    """Each score with a maximum: its candidates, its value, where candidate and score stand."""
    for match in _patterns(noun).score.finditer(text):
        yield _candidates(match), Decimal(match["score"]), match.span()


def _candidates(match: re.Match[str]) -> tuple[int, ...]:
    """The candidates that a statement or a score is about."""
    return (1, 2) if match["both"] else (int(match["index"]),)


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
    name = rf"(?:{NOUNS[noun]})"
    # "Both images (10/10)", "Images 1 and 2 (8/10)" and "Image 1 and Image 2: 8/10" score both.
    conjunction = rf"\s*(?:and|&|,|和)\s*(?:{name}\s*)?"
    pair = rf"{name}s?\s*(?:1{conjunction}2|2{conjunction}1)(?!\d)(?:\s+both\b)?"
    both = rf"\bboth\b(?:\s+{name}s?)?|{pair}"
    single = rf"{name}\s*[#_-]?(?P<index>[12])(?!\d)(?:['’]s)?"
    initials = "".join(word[0] for word in NOUNS[noun].split("|"))
    candidate = rf"(?=[b{initials}])(?:(?P<both>{both})|{single})"
    # Only this may stand between a candidate and its score or total: markup, a colon, "is", "total
    # score", ... A minus that touches a number is its sign.
    words = (
        r"\b(?:total(?:s|ed|l?ing)?|scores?|sum|rating|rated|assigned|is|gets|has|have|receives?"
        r"|earns?|comes|of|an?|the|to|with|boxed)\b|总得?分|總得?分|得分?|为|為|是|共|的"
    )
    filler = rf"(?:[\s*_`|:=()\[\]{{}}\"$\\~>→⇒–—‑]|[-−](?!\d)|{words})*?"
    # "9+8+8=25"
    written_sum = (
        rf"(?P<sum>{WRITTEN_SUM}){_MARKUP}{EQUALS}{_MARKUP}(?P<of_sum>{NUMBER})(?:{MAXIMUM})?"
    )
    # "25", "25/30 (best)", "25 (9+8+8)"
    bare = (
        rf"(?P<plain>{NUMBER})(?:{MAXIMUM})?"
        rf"(?:\s*[=(]\s*(?P<parts>{WRITTEN_SUM})|\s*\([^()\d]{{1,40}}\))?"
    )
    total = rf"{candidate}{filler}(?>{written_sum}|{bare})(?!{CONTINUATION})"
    # "Image 1 blurred, dull (4/10)": a remark may come before the bracket, on the same line.
    score = rf"{candidate}(?:{filler}|[^()\n;/\d]{{1,60}}\()(?P<score>{NUMBER}){MAXIMUM}"
    # " score for ", "s (out of 30):\n- "; or the rest of a phrase that ends in a colon.
    glue = (
        rf"(?:\([^()]{{1,40}}\)|[\s*_`|:=\[\](){{}}\"$\\~>.,–—-]|{both}|{name}s?"
        r"|\b(?:scores?|points?|of|for|the|each|all|is|are)\b)*+"
    )
    lead_in = rf"{glue}|[^.,;:!?。、\d]{{0,60}}:[\s*_`|\[({{\"$–—-]*"
    return _Patterns(*(re.compile(part, re.IGNORECASE) for part in (total, score, lead_in)))
