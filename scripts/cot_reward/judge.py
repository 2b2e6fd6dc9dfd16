"""The judge: the text of a completion -> Verdict. It is pure, and it never guesses an answer.

Two findings are independent of each other: the verdict (is the answer right?) and the coherence
(do the scores, sums and totals of the reasoning support the answer?). A wrong sum is found by
`StatedTotal.adds_up`, and the order in which findings count stands in `_coherence`.

Totals are read in two ways. `_announced` reads the form that the prompt asks for (a heading, then
each candidate with its total), fast. Only where it finds nothing, or where the text corrects
itself afterwards, `_Reader` reads other layouts: tables, a block for each candidate, pairs, ...
"""

import re
from bisect import bisect
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property, lru_cache
from itertools import groupby, pairwise

from cot_reward.records import Task, Verdict

# Raise this when a finding changes for any text: stored findings are then judged again.
VERSION = 3

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
        """Whether the sum is the total, rounded as the total is written (8.33 + 7.33 = 15.7)."""
        if not self.summands:
            return True
        exact = sum(self.summands, Decimal(0))
        # Rounding takes its time, and most sums need none.
        return exact == self.total or exact.quantize(self.total, ROUND_HALF_UP) == self.total


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


def has_unread_totals(text: str, verdict: Verdict) -> bool:
    """Whether a text speaks of totals or writes out sums, and the judge could read no totals.

    Count these texts to see how much the finding "no_totals" hides.
    """
    return verdict.coherence == "no_totals" and _SPOKEN_TOTAL.search(_ascii(text)) is not None


def totals_in(reasoning: str, noun: str) -> tuple[dict[int, StatedTotal], str]:
    """The stated totals by candidate (1, 2; empty when not both are stated), and the text before.

    When a text corrects itself, the last complete statement counts. Full-width digits and signs
    count as ASCII.
    """
    text = _ascii(reasoning)
    found, before = _announced(text, noun)
    starts = [stated.start for stated in found.values()]
    # In "... worse than Image 2\nTotal: 7" the total is not Image 2's.
    if found and not any(
        text[at - 1 : at] != "\n" and _COMPARED.search(text, max(0, at - 20), at) for at in starts
    ):
        # The text after the totals is short in most texts, so that this search costs little.
        last = max(starts)
        correction = _CORRECTION.search(text, last)
        if correction is None:
            return found, before
        tail = text[correction.start() :]
        return _Reader(_plain(tail), noun, found).totals(), before
    if _SPOKEN_TOTAL.search(text) is None:
        return {}, text
    text = _plain(text)
    found = _Reader(text, noun).totals()
    start = min((stated.start for stated in found.values()), default=len(text))
    return found, text[:start]


def _announced(text: str, noun: str) -> tuple[dict[int, StatedTotal], str]:
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


def _ascii(text: str) -> str:
    """The text with full-width digits and signs as ASCII."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)


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


# --- other layouts --------------------------------------------------------------------------------

# What a statement rests on, the most certain first: the word "total" itself, a word that is often
# used for a total, or a written sum without such a word.
_TOTAL, _LIKELY, _SUM_ALONE = range(3)
_CANDIDATES = {"first": (1,), "second": (2,), "both": (1, 2)}


@dataclass(frozen=True)
class _Statement:
    candidates: tuple[int, ...]
    stated: StatedTotal
    basis: int


@dataclass
class _Reader:
    """Reads the totals of a plain text (`_plain`) in layouts that have no fixed place for them.

    A token is a candidate, a heading of totals, a number or a written sum, or a correction. `known`
    are the totals that were stated before this text.
    """

    text: str
    noun: str
    known: dict[int, StatedTotal] = field(default_factory=dict)
    tokens: list[re.Match[str]] = field(default_factory=list)
    statements: list[_Statement] = field(default_factory=list)
    # Numbers beside a candidate that are not stated as totals: scores and remarks.
    scores: list[_Statement] = field(default_factory=list)

    def totals(self) -> dict[int, StatedTotal]:
        """The totals by candidate; empty when not both are stated, or when one is ambiguous."""
        self.text, tables = _without_tables(self.text)
        for rows, start in tables:
            self._read_table(rows, start)
        tokens = _layout_patterns(self.noun).token.finditer(self.text)
        self.tokens = [token for token in tokens if token.lastgroup != "item"]
        owners = self._owners()
        starts = [
            at
            for at, token in enumerate(self.tokens)
            if token.lastgroup in ("heading", "correction")
        ]
        if self.tokens and 0 not in starts:
            starts.insert(0, 0)
        for start, end in pairwise([*starts, len(self.tokens)]):
            self._read_section(start, end, owners)
        return self._last_complete()

    # From statements to totals.

    def _last_complete(self) -> dict[int, StatedTotal]:
        """The totals after the last correction. A correction of one candidate keeps the other's."""
        totals = dict(self.known)
        corrections = [each.start() for each in self.tokens if each.lastgroup == "correction"]
        statements = sorted(self.statements, key=lambda each: each.stated.start)
        for _, part in groupby(statements, lambda each: bisect(corrections, each.stated.start)):
            totals.update(self._agreed(list(part), is_correction=len(totals) == 2))
        return totals if len(totals) == 2 else {}

    def _agreed(
        self, statements: list[_Statement], *, is_correction: bool
    ) -> dict[int, StatedTotal]:
        """The totals on the most certain basis that gives them; empty when they differ there."""
        found: dict[int, StatedTotal] = {}
        for basis in (_TOTAL, _LIKELY, _SUM_ALONE):
            for each in statements:
                if each.basis != basis or (basis == _SUM_ALONE and not self._is_of_all(each)):
                    continue
                for candidate in each.candidates:
                    other = found.setdefault(candidate, each.stated)
                    if other.total != each.stated.total:
                        return {}
                    if not other.summands:
                        found[candidate] = each.stated
            if len(found) == 2 or (found and is_correction):
                return found
        return {}

    def _is_of_all(self, each: _Statement) -> bool:
        """Whether a sum is of all scores that stand beside its candidate, and not of some."""
        # Each sum is compared with each score: a text with more of them is not read.
        if len(self.scores) > _MAX_SCORES:
            return False
        candidates, start = set(each.candidates), each.stated.start
        scores = [score.stated for score in self.scores if candidates & {*score.candidates}]
        before = sorted(score.total for score in scores if score.start < start)
        return (not before or before == sorted(each.stated.summands)) and all(
            score.total == each.stated.total for score in scores if score.start > start
        )

    # Tables.

    def _read_table(self, rows: list[list[str]], start: int) -> None:
        """Read a total row below columns of candidates, or a total column beside their rows."""
        patterns = _layout_patterns(self.noun)
        candidate_columns: dict[int, int] = {}
        total_column, width = 0, 0
        for row in rows:
            named = {}
            for column, cell in enumerate(row):
                match = patterns.candidate.search(cell)
                if match and match.lastgroup != "both":
                    named[column] = _CANDIDATES[match.lastgroup or ""][0]
            headed = [column for column, cell in enumerate(row) if patterns.heading.search(cell)]
            if sorted(named.values()) == [1, 2] and min(named) > 0:
                candidate_columns, total_column, width = named, 0, len(row)
            elif headed and headed[-1] > 0:
                candidate_columns, total_column, width = {}, headed[-1], len(row)
            elif len(row) == width and total_column:
                candidate = named.get(0) or {"1": 1, "2": 2}.get(row[0].strip())
                if candidate:
                    self._add_cell(row[total_column], (candidate,), start)
            elif len(row) == width and headed:
                for column, candidate in candidate_columns.items():
                    self._add_cell(row[column], (candidate,), start)

    def _add_cell(self, cell: str, candidates: tuple[int, ...], start: int) -> None:
        match = _CELL.fullmatch(cell)
        if match:
            self.statements.append(_Statement(candidates, _stated(match, start), _TOTAL))

    # Running text.

    def _owners(self) -> list[int]:
        """For each token the candidate whose block it stands in; 0 outside of a block.

        A block starts with its candidate, on a new line. Where no line starts with one of them,
        a block starts with a new sentence or clause ("Image 1: ... total 7; Image 2: ...").
        """
        for pattern in (_LINE_START, _CLAUSE_START):
            owner, owners = 0, []
            for token in self.tokens:
                if token.lastgroup in ("first", "second"):
                    head = self.text[
                        max(0, token.start() - _MAX_CHARACTERS_BETWEEN) : token.start()
                    ]
                    if token.start() <= _MAX_CHARACTERS_BETWEEN:
                        head = "\n" + head
                    if pattern.search(head):
                        owner = _CANDIDATES[token.lastgroup][0]
                owners.append(owner)
            if {1, 2} <= set(owners):
                break
        return owners

    def _read_section(self, start: int, end: int, owners: list[int]) -> None:
        """Read the tokens from one heading (or the start, or a correction) to the next."""
        opening = self.tokens[start]
        basis = _basis(opening[0])
        is_heading = opening.lastgroup == "heading"
        if is_heading and self._read_pair(start, end, basis):
            return
        values = [at for at in range(start, end) if self.tokens[at].lastgroup == "value"]
        after = [at for at in values if self._has_candidate_behind(at)]
        if after and (self.tokens[after[0]]["tail"] or (is_heading and after[0] == start + 1)):
            for at in after:
                self._add(self.statements, self.tokens[at + 1], self.tokens[at], basis)
            return
        if is_heading and values and values[0] == start + 1 and self._is_stated(start, start + 1):
            before = self.tokens[start - 1] if start else None
            # Across lines the block counts: "... worse than Image 2\n- Total: 7".
            if before is None or not self._belongs(start - 1, start):
                self._add_block_total(owners[start], self.tokens[start + 1], basis)
            else:
                self._add(self.statements, before, self.tokens[start + 1], basis)
        beside = [
            at
            for at in values
            if at > start
            and self.tokens[at - 1].lastgroup in _CANDIDATES
            and self._is_stated(at - 1, at)
        ]
        announced = self._is_announced(start, beside)
        tails = [at for at in beside if self.tokens[at]["tail"]]
        first = beside[0] if announced else tails[0] if tails else end
        listed = [at for at in beside if at >= first]
        if self._differ(listed):
            # Some of them are scores. A total that says so itself counts all the same.
            listed = tails
        for at in beside:
            candidate, value = self.tokens[at - 1], self.tokens[at]
            if at in listed:
                self._add(self.statements, candidate, value, basis if announced else _TOTAL)
            elif value["of_sum"]:
                # "Image 1: 1+1=2 is legible" is about what the image shows.
                if _SUM_END.match(self.text, value.end()):
                    self._add(self.statements, candidate, value, _SUM_ALONE)
            else:
                self._add(self.scores, candidate, value, _SUM_ALONE)

    def _add(
        self, to: list[_Statement], candidate: re.Match[str], value: re.Match[str], basis: int
    ) -> None:
        candidates = _CANDIDATES[candidate.lastgroup or ""]
        to.append(_Statement(candidates, _stated(value, value.start()), basis))

    def _add_block_total(self, owner: int, value: re.Match[str], basis: int) -> None:
        if owner:
            self.statements.append(_Statement((owner,), _stated(value, value.start()), basis))

    def _differ(self, places: list[int]) -> bool:
        """Whether these values give one candidate two numbers."""
        numbers: dict[int, set[Decimal]] = {1: set(), 2: set()}
        for at in places:
            for candidate in _CANDIDATES[self.tokens[at - 1].lastgroup or ""]:
                numbers[candidate].add(_stated(self.tokens[at], 0).total)
        return any(len(each) > 1 for each in numbers.values())

    def _between(self, left: int, right: int) -> str:
        return self.text[self.tokens[left].end() : self.tokens[right].start()]

    def _belongs(self, left: int, right: int) -> bool:
        """Whether only filling words stand between a candidate and what is said about it."""
        between = self._between(left, right)
        return (
            self.tokens[left].lastgroup in _CANDIDATES
            and "\n" not in between
            and len(between) <= _MAX_CHARACTERS_BETWEEN
            and _GLUE.fullmatch(between) is not None
        )

    def _is_stated(self, left: int, right: int) -> bool:
        """Whether the value on the right is said of the candidate or heading on the left."""
        value = self.tokens[right]
        if not value["tail"] and _CONTINUED.match(self.text, value.end()):
            return False
        if value["rest"] and not value["of_sum"]:
            return False
        between = self._between(left, right)
        glue = _NAMED if value["of_sum"] else _GLUE
        return len(between) <= _MAX_CHARACTERS_BETWEEN and glue.fullmatch(between) is not None

    def _is_announced(self, start: int, beside: list[int]) -> bool:
        """Whether the section begins with a list of candidates and their totals."""
        opening = self.tokens[start]
        if beside[:1] != [start + 2]:
            return False
        if opening.lastgroup != "heading" and not (
            (self.known or self.statements) and _RECOUNT.match(opening[0])
        ):
            return False
        between = self._between(start, start + 1)
        # "There are 3 people in all. Image 1 (7/10), ..." announces nothing.
        if opening.lastgroup == "heading" and _basis(opening[0]) != _TOTAL and "." in between:
            return False
        return len(between) <= _MAX_CHARACTERS_BETWEEN and bool(_LEAD_IN.fullmatch(between))

    def _has_candidate_behind(self, at: int) -> bool:
        """Whether it is "25 for Image 1" or "25 (Image 1)"."""
        return (
            at + 1 < len(self.tokens)
            and self.tokens[at + 1].lastgroup in _CANDIDATES
            and _FOR.fullmatch(self._between(at, at + 1)) is not None
        )

    # Pairs: "Total: 7 vs 17".

    def _read_pair(self, start: int, end: int, basis: int) -> bool:
        """Read two totals that follow each other after the heading; False when there are none."""
        at = start + 1
        order = self._named_pair(start + 1, end)
        if order:
            at += 2
        elif start >= 2:
            order = self._named_pair(start - 2, start)
        if at >= end or self.tokens[at].lastgroup != "value":
            return False
        between = self._between(at - 1, at)
        if len(between) > _MAX_CHARACTERS_BETWEEN or not _GLUE.fullmatch(between):
            return False
        first = self.tokens[at]
        if order and first["maximum"] and not (at + 1 < end and self._is_pair(at, _SEPARATED)):
            # "Total (Image 1 / Image 2): 25 / 18" looks like 25 of 18.
            maximum = Decimal(first["maximum"])
            if first["rest"] or "/" not in self._between(at - 2, at - 1):
                return False
            totals = [_stated(first, first.start()), StatedTotal(maximum, (), first.start())]
        elif at + 1 < end and self._is_pair(at, _SEPARATED if order else _AGAINST):
            second = self.tokens[at + 1]
            totals = [_stated(each, each.start()) for each in (first, second)]
            order = order or self._named_pair(at + 2, end)
            if not order and self._is_alone(start, at + 1) and self._names_first_first:
                order = (1, 2)
        else:
            order = order or self._header_order(start)
            if not order or at + 1 >= end or not self._is_pair(at, _SEPARATED):
                return False
            totals = [_stated(self.tokens[each], first.start()) for each in (at, at + 1)]
        for candidate, stated in zip(order, totals, strict=False):
            self.statements.append(_Statement((candidate,), stated, basis))
        return True

    def _named_pair(self, at: int, end: int) -> tuple[int, ...]:
        """The order of two candidates that are named beside each other; () otherwise."""
        pair = self.tokens[at : at + 2]
        if at + 2 > end or [each.lastgroup in ("first", "second") for each in pair] != [True] * 2:
            return ()
        order = tuple(_CANDIDATES[each.lastgroup or ""][0] for each in pair)
        is_beside = _SEPARATED.fullmatch(self._between(at, at + 1))
        return order if is_beside and sum(order) == 3 else ()

    def _header_order(self, start: int) -> tuple[int, ...]:
        """The order of the candidates in the last line that names both beside each other."""
        for at in range(start - 2, max(-1, start - _MAX_TOKENS_TO_HEADER), -1):
            order = self._named_pair(at, start)
            if order:
                return order
        return ()

    def _is_pair(self, at: int, separator: re.Pattern[str]) -> bool:
        """Whether the value at this place and the next one are two sides of a pair."""
        second = self.tokens[at + 1]
        return (
            second.lastgroup == "value"
            and separator.fullmatch(self._between(at, at + 1)) is not None
            and not any(each["rest"] and not each["of_sum"] for each in self.tokens[at : at + 2])
            and not _CONTINUED.match(self.text, second.end())
        )

    def _is_alone(self, start: int, last: int) -> bool:
        """Whether a pair fills its line."""
        heading, second = self.tokens[start], self.tokens[last]
        line = self.text.rfind("\n", 0, heading.start()) + 1
        return (
            heading.start() - line <= _MAX_CHARACTERS_BETWEEN
            and _LINE_START.search("\n" + self.text[line : heading.start()]) is not None
            and _LINE_END.match(self.text, second.end()) is not None
        )

    @cached_property
    def _names_first_first(self) -> bool:
        """Whether the text, and each line of it, names the first candidate before the second."""
        line = -1
        seen: dict[int, str] = {}
        for token in self.tokens:
            if token.lastgroup in ("first", "second"):
                if line < 0 or self.text.find("\n", line, token.start()) >= 0:
                    line = self.text.rfind("\n", 0, token.start()) + 1
                opening = seen.setdefault(line, token.lastgroup)
                if opening == "second" and (len(seen) == 1 or token.lastgroup == "first"):
                    return False
        return True


def _stated(value: re.Match[str], start: int) -> StatedTotal:
    """The total of a value token or a table's cell."""
    written = value["parts"] or (value["sum"] if value["of_sum"] else "")
    total = value["of_sum"] or value["number"]
    return StatedTotal(Decimal(total), tuple(map(Decimal, _SUMMAND.findall(written))), start)


def _basis(heading: str) -> int:
    return _TOTAL if _HEADING.search(heading) else _LIKELY


def _plain(text: str) -> str:
    """The text without Markdown, LaTeX, HTML and JSON markup, white space collapsed."""
    text = _LATEX_ARROW.sub("=", text)
    text = _MARKUP_TO_DROP.sub("", text).translate(_MARKUP_TO_SPACE)
    return _BLANK_LINES.sub("\n", _SPACES.sub(" ", text))


def _without_tables(text: str) -> tuple[str, list[tuple[list[list[str]], int]]]:
    """The text with its tables blanked out, and the tables: rows of cells, and their starts."""
    if "|" not in text:
        return text, []
    lines, tables, start = [], [], 0
    for is_table, group in groupby(text.split("\n"), lambda line: line.count("|") >= 2):
        block = list(group)
        if is_table and len(block) > 1:
            tables.append(([_cells(line) for line in block], start))
            lines += [" " * len(line) for line in block]
        else:
            lines += block
        start += sum(len(line) + 1 for line in block)
    return "\n".join(lines), tables


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|")


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


# --- patterns of other layouts --------------------------------------------------------------------
# They are for a plain text: each run of white space is one space or one line feed.

# How far apart two tokens may stand that belong together.
_MAX_CHARACTERS_BETWEEN = 100
# More scores than that are in no chain of thought.
_MAX_SCORES = 200
# How far above a row of totals its header is looked for.
_MAX_TOKENS_TO_HEADER = 60

_LATEX_ARROW = re.compile(r"\\(?:to|(?:long)?(?:R|r)ightarrow|implies)\b")
# A star between digits multiplies.
_MARKUP_TO_DROP = re.compile(
    r"\\(?:boxed|text[a-z]{0,2}|math[a-z]{2}|left|right|q?quad|displaystyle|[a-z]{0,5}box)\b|\\[()\[\],;!]"
    r"|</?(?:b|strong|i|em|u|span|p|li|ul|ol|h[1-6])>|(?<!\d)\*+|\*+(?![\d*]| ?\d)|`+|~~"
)
_MARKUP_TO_SPACE = dict.fromkeys(map(ord, "_\"“”$#{}[]【】「」‘"), " ") | {
    ord("’"): "'", ord("。"): ".", ord("、"): ","
}  # fmt: skip
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?\n[ \n]*")

_UNIT = r"(?: ?(?:points?\b|pts\b\.?|分(?!数)))"
_TO_MAXIMUM = r"(?: ?(?:/|out of) ?(?P<maximum>\d{1,9}))"
_OF_MAXIMUM = r"(?: ?(?:/|out of) ?\d{1,9})"
_REMARK = r"(?: ?\([^()\d\n]{1,40}\))"
_NAME = r"(?:[^\W\d][^\d+=|;\n]{0,40}?)"
_SUMMAND_REST = rf"(?:{_OF_MAXIMUM}?{_UNIT}?\)?{_REMARK}?)"
_IS = r"(?:=|≈|→|⇒|->|=>|\b(?:equals|makes|gives|totals|is)\b|等于|等於|共)"
_VALUE = (
    r"(?<![\d−-])(?<!\d[.,/×])(?P<sum>"
    rf"(?P<number>{_NUMBER}){_TO_MAXIMUM}?{_UNIT}?"
    # Possessive, so that a sum of any length is read once.
    rf"(?P<rest>(?:\)?{_REMARK}?\s?\+\s?\(?{_NAME}?\(?{_NUMBER}{_SUMMAND_REST}?)*+)"
    rf")(?:\)?{_REMARK}?\s?{_IS}\s?(?P<of_sum>{_NUMBER}){_OF_MAXIMUM}?{_UNIT}?"
    rf"|\s?[(=]\s?(?P<parts>{_NUMBER}{_OF_MAXIMUM}?(?:\s?\+\s?{_NUMBER}{_OF_MAXIMUM}?)++)\)?)?"
)
_TAIL = (
    r"(?P<tail>,? ?\(?\b(?:in (?:total|all|sum)|altogether|overall|all told|total)\b\)?"
    r"(?!\s?[:=(]* ?\d))"
)
# Words that are often used for a total, beside those of `_HEADING`.
_LIKELY_HEADING = (
    r"\b(?:(?:grand|final|combined|aggregate|cumulative|average|mean|weighted|summed|overall)"
    r" (?:scores?|points|sum|tally|ratings?|results?|marks?|grade)|(?:final )?tally"
    r"|overall(?= ?[:=])"
    r"|sum(?: total)?|add(?:s|ed|ing)?(?: (?:them|it|these|everything|the scores))? up|altogether"
    r"|in all)\b|总和|總和|总成绩|总共|總共|一共|共计|共計|合共|累计|综合得分|综合评分"
    r"|最终得分|最终评分|平均分"
)
# "out of a total of 20" and "Total possible: 20" are no totals of a candidate.
_HEADING_TOKEN = (
    r"(?<!sub-)(?<!sub )(?<!out of a )(?<!of the )(?<!out of )(?<!possible )(?<!maximum )(?<!max )"
    rf"(?:{_LIKELY_HEADING}|{_HEADING.pattern})"
)
_CORRECTION_TOKEN = (
    r"\b(?:wait|hold on|oops|actually|correction|corrected|correcting|revised|updated|adjusted"
    r"|re-?(?:count|calculat|comput|check|sum|add|total|tall)\w{0,6}|double-?check\w{0,3}"
    r"|on second thought|mistake|miscalculat\w{0,4}|(?:grand|final)(?= (?:total|tally|score)))\b"
    r"|更正|修正|重新|不对|不對|等等"
)
_CORRECTION = re.compile(rf"(?=[whoacrudmgf更修重不等])(?:{_CORRECTION_TOKEN})", re.IGNORECASE)
_COMPARED = re.compile(r"\b(?:than|unlike|like|compared (?:to|with))\s[*_]*\Z", re.IGNORECASE)
_RECOUNT = re.compile(r"re|correct|updated|adjusted|更正|修正|重新", re.IGNORECASE)
# What makes a text worth reading: a heading, or a written sum.
_SPOKEN_TOTAL = re.compile(
    r"(?<![a-z])(?=[acfgimostw=总總一共合累综最平])(?:"
    rf"{_LIKELY_HEADING}|{_HEADING.pattern}|(?<=_)total|(?<=[\d)\]}}*$分] )=|(?<=[\d)\]}}*$分])="
    r"|(?<=\n)=(?=\s?[\d*$]))",
    re.IGNORECASE,
)
_CONTINUED = re.compile(
    rf"(?!{_UNIT}|\s(?:out of|compared|respectively|each|by|at|after|total|both)\b)"
    rf"(?:{_CONTINUATION})",
    re.IGNORECASE,
)
_WORDS = (
    r"\b(?:total(?:s|ed|l?ing)?|scor(?:es?|ed|ing)|sum|ratings?|rated|assigned|is|are|was|were|be|gets?|got|has"
    r"|have|had|receive[sd]?|earn(?:s|ed)?|comes?|came|out|in|at|up|of|an?|the|to|with|ends?|ended"
    r"|finish(?:es|ed)?|reach(?:es|ed)?|achieve[sd]?|obtain(?:s|ed)?|collects?|accumulates?|gains?"
    r"|stands?|lands?|adds?|amounts?|equals?|only|just|now|then|so|thus|therefore|also|would|should"
    r"|final|overall|grand|weighted|combined|points?|marks?|value|number|for|it|its|all|both|each"
    r"|across|dimensions?|criteria|respectively|as|follows|that|this|one|and|while)\b"
    r"|总得?分|總得?分|得到了?|获得了?|得了?分?|分数|分數|评分|总计|合计|總計|合計|为|為|是|共|有|的|则|也|它|拿到|分别"
)
_GLUE_PART = (
    rf"\([^()\d\n]{{1,40}}\)|\( ?(?:out of|max(?:imum)?\.?|/|of|满分)?:?"
    rf" ?\d{{1,4}}(?: points?| pts|分)?\)"
    rf"|/ ?\d{{1,4}}(?= ?[:=|])|{_WORDS}|[\s:=(),.'>→⇒≈–—-]"
)
_GLUE = re.compile(rf"(?:{_GLUE_PART})*+", re.IGNORECASE)
# The first summand may have a name: "Image 1: Fit 3 + Look 4 = 7".
_NAMED = re.compile(rf"(?:{_GLUE_PART})*+(?:[^\d;|.\n]{{1,60}})?", re.IGNORECASE)
_LEAD_IN = re.compile(
    rf"(?:{_GLUE_PART}|\b(?:images?|videos?|answers?)\b)*+|[^.,;:!?\d\n]{{0,60}}:[\s(–—-]*",
    re.IGNORECASE,
)
_FOR = re.compile(
    r" ?(?:goes |go |belongs? |awarded |given )?(?:\((?:for )?|\b(?:for|to|by) |给|给了)(?:the )?",
    re.IGNORECASE,
)
_AGAINST = re.compile(r"\s?(?:\bvs\b\.?|\bversus\b|\bagainst\b|\bto\b|:|比|对)\s?", re.IGNORECASE)
_SEPARATED = re.compile(
    r"\)?\s?(?:\bvs\b\.?|\bversus\b|\bagainst\b|\bto\b|\band\b|比|对|和|与"
    r"|[:,/&|–—;-])?\s?(?:the )?\(?",
    re.IGNORECASE,
)
_SUM_END = re.compile(
    rf"\)?{_REMARK}?\s?(?:[\n.;,!:–—-]|\Z|\b(?:and|while|but|whereas|vs)\b)", re.IGNORECASE
)
_LINE_END = re.compile(rf"{_OF_MAXIMUM}?[ .;!)]*(?:\n|\Z)")
_OPENING_WORDS = (
    r"(?:(?:the|and|while|whereas|but|now|next|then|finally|for|as for|regarding"
    r"|(?:evaluation|analysis|assessment|scor(?:es?|ing)|ratings?|review|total|breakdown|calculation"
    r"|details) (?:of|for))[ ,:]{1,2}){0,4}"
)
_LINE_START = re.compile(rf"\n[ >•·–—(-]*(?:\d{{1,2}}[.)] ?)?{_OPENING_WORDS}\Z", re.IGNORECASE)
_CLAUSE_START = re.compile(rf"[\n.;,!?|:]['\s(-]*{_OPENING_WORDS}\Z", re.IGNORECASE)
# A cell of a table: a number or a sum, and at most a short remark.
_CELL = re.compile(rf"[^\w−-]*{_VALUE}[^\d|+=×*/]{{0,40}}", re.IGNORECASE)


@dataclass(frozen=True)
class _LayoutPatterns:
    """The patterns of other layouts for one noun. A token's kind is its last group."""

    token: re.Pattern[str]
    candidate: re.Pattern[str]
    first: re.Pattern[str]
    heading: re.Pattern[str]


@lru_cache(maxsize=8)
def _layout_patterns(noun: str) -> _LayoutPatterns:
    words = _NOUNS[noun].split("|") + (["Picture", "Photo", "Img"] if noun == "Image" else [])
    name = "(?:" + "|".join(rf"\b{word}s?" if word.isascii() else word for word in words) + ")"

    def single(index: int) -> str:
        word, ordinal, digit, sign = (
            ("first", "1st", "one", "一") if index == 1 else ("second", "2nd", "two", "二")
        )
        # "Image 1", "image one", "the first image", "the second one", "第一张图", "图一".
        return (
            rf"(?:\b(?:{word}|{ordinal}) (?:{name}|one\b)|\bthe {word}(?='s | is | gets | has |:)"
            rf"|第[{index}{sign}][张張个個幅段]?的?{name}"
            rf"|{name} ?(?:no\. ?|-)?(?:{index}(?![\d%]|[.,/]\d)|{digit}\b|{sign}))(?:'s\b)?"
        )

    both = rf"\bboth\b(?: {name})?"
    candidate = rf"(?P<first>{single(1)})|(?P<second>{single(2)})|(?P<both>{both})"
    # The number of a list's item ("1. ", "2) ") is no value.
    item = r"(?P<item>(?:(?<=\n)|(?<=\n- )|\A)\d{1,2}[.)] (?=\S))"
    # No token starts within an English word. To say so first halves the time.
    token = (
        r"(?<![a-z])(?=[\da-z]|[^\x00-\x7f])(?:"
        rf"{item}|{candidate}|(?P<correction>{_CORRECTION_TOKEN})|(?P<heading>{_HEADING_TOKEN})"
        rf"|(?P<value>{_VALUE}{_TAIL}?))"
    )
    return _LayoutPatterns(
        *(re.compile(part, re.IGNORECASE) for part in (token, candidate, single(1), _HEADING_TOKEN))
    )
