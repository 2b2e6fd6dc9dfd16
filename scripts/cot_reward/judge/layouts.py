"""The second reader of totals: tables, a block for each candidate, pairs, and other layouts."""

import re
from bisect import bisect
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import groupby, pairwise

from cot_reward.judge import layout_patterns as patterns
from cot_reward.judge.stated import HEADING, SUMMAND, StatedTotal

# What a statement rests on, the most certain first: the word "total" itself, a word that is often
# used for a total, or a written sum without such a word.
_TOTAL, _LIKELY, _SUM_ALONE = range(3)
_CANDIDATES = {"first": (1,), "second": (2,), "both": (1, 2)}
# How far apart two tokens may stand that belong together.
_MAX_CHARACTERS_BETWEEN = 100
# More scores than that are in no chain of thought.
_MAX_SCORES = 200
# How far above a row of totals its header is looked for.
_MAX_TOKENS_TO_HEADER = 60


@dataclass(frozen=True)
class _Statement:
    candidates: tuple[int, ...]
    stated: StatedTotal
    basis: int


@dataclass
class LayoutReader:
    """Reads the totals of a text in layouts that have no fixed place for them.

    The text is plain (`without_markup`). A token is a candidate, a heading of totals, a number or
    a written sum, or a correction. `known` are the totals that were stated before this text.
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
        tokens = patterns.of_noun(self.noun).token.finditer(self.text)
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
        of_noun = patterns.of_noun(self.noun)
        candidate_columns: dict[int, int] = {}
        total_column, width = 0, 0
        for row in rows:
            named = {}
            for column, cell in enumerate(row):
                match = of_noun.candidate.search(cell)
                if match and match.lastgroup != "both":
                    named[column] = _CANDIDATES[match.lastgroup or ""][0]
            headed = [column for column, cell in enumerate(row) if of_noun.heading.search(cell)]
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
        match = patterns.CELL.fullmatch(cell)
        if match:
            self.statements.append(_Statement(candidates, _stated(match, start), _TOTAL))

    # Running text.

    def _owners(self) -> list[int]:
        """For each token the candidate whose block it stands in; 0 outside of a block.

        A block starts with its candidate, on a new line. Where no line starts with one of them,
        a block starts with a new sentence or clause ("Image 1: ... total 7; Image 2: ...").
        """
        for pattern in (patterns.LINE_START, patterns.CLAUSE_START):
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
                if patterns.SUM_END.match(self.text, value.end()):
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
            and patterns.GLUE.fullmatch(between) is not None
        )

    def _is_stated(self, left: int, right: int) -> bool:
        """Whether the value on the right is said of the candidate or heading on the left."""
        value = self.tokens[right]
        if not value["tail"] and patterns.CONTINUED.match(self.text, value.end()):
            return False
        if value["rest"] and not value["of_sum"]:
            return False
        between = self._between(left, right)
        glue = patterns.NAMED if value["of_sum"] else patterns.GLUE
        return len(between) <= _MAX_CHARACTERS_BETWEEN and glue.fullmatch(between) is not None

    def _is_announced(self, start: int, beside: list[int]) -> bool:
        """Whether the section begins with a list of candidates and their totals."""
        opening = self.tokens[start]
        if beside[:1] != [start + 2]:
            return False
        if opening.lastgroup != "heading" and not (
            (self.known or self.statements) and patterns.RECOUNT.match(opening[0])
        ):
            return False
        between = self._between(start, start + 1)
        # "There are 3 people in all. Image 1 (7/10), ..." announces nothing.
        if opening.lastgroup == "heading" and _basis(opening[0]) != _TOTAL and "." in between:
            return False
        return len(between) <= _MAX_CHARACTERS_BETWEEN and bool(patterns.LEAD_IN.fullmatch(between))

    def _has_candidate_behind(self, at: int) -> bool:
        """Whether it is "25 for Image 1" or "25 (Image 1)"."""
        return (
            at + 1 < len(self.tokens)
            and self.tokens[at + 1].lastgroup in _CANDIDATES
            and patterns.FOR.fullmatch(self._between(at, at + 1)) is not None
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
        if len(between) > _MAX_CHARACTERS_BETWEEN or not patterns.GLUE.fullmatch(between):
            return False
        first = self.tokens[at]
        if (
            order
            and first["maximum"]
            and not (at + 1 < end and self._is_pair(at, patterns.SEPARATED))
        ):
            # "Total (Image 1 / Image 2): 25 / 18" looks like 25 of 18.
            maximum = Decimal(first["maximum"])
            if first["rest"] or "/" not in self._between(at - 2, at - 1):
                return False
            totals = [_stated(first, first.start()), StatedTotal(maximum, (), first.start())]
        elif at + 1 < end and self._is_pair(at, patterns.SEPARATED if order else patterns.AGAINST):
            second = self.tokens[at + 1]
            totals = [_stated(each, each.start()) for each in (first, second)]
            order = order or self._named_pair(at + 2, end)
            if not order and self._is_alone(start, at + 1) and self._names_first_first:
                order = (1, 2)
        else:
            order = order or self._header_order(start)
            if not order or at + 1 >= end or not self._is_pair(at, patterns.SEPARATED):
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
        is_beside = patterns.SEPARATED.fullmatch(self._between(at, at + 1))
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
            and not patterns.CONTINUED.match(self.text, second.end())
        )

    def _is_alone(self, start: int, last: int) -> bool:
        """Whether a pair fills its line."""
        heading, second = self.tokens[start], self.tokens[last]
        line = self.text.rfind("\n", 0, heading.start()) + 1
        return (
            heading.start() - line <= _MAX_CHARACTERS_BETWEEN
            and patterns.LINE_START.search("\n" + self.text[line : heading.start()]) is not None
            and patterns.LINE_END.match(self.text, second.end()) is not None
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
    return StatedTotal(Decimal(total), tuple(map(Decimal, SUMMAND.findall(written))), start)


def _basis(heading: str) -> int:
    return _TOTAL if HEADING.search(heading) else _LIKELY


def without_markup(text: str) -> str:
    """The text without Markdown, LaTeX, HTML and JSON markup, white space collapsed."""
    text = patterns.LATEX_ARROW.sub("=", text)
    text = patterns.MARKUP_TO_DROP.sub("", text).translate(patterns.MARKUP_TO_SPACE)
    return patterns.BLANK_LINES.sub("\n", patterns.SPACES.sub(" ", text))


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
