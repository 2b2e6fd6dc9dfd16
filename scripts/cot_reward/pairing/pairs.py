"""Which right and wrong texts about one presentation become pairs. Pure: no files, no engine."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from cot_reward.judge import totals_in
from cot_reward.tasks import TASKS

# Texts of one side that are compared at most: their number counts squared.
_MOST_TEXTS = 256
# Words become characters, so that a compiled function compares them; halves of characters are none.
_FIRST, _SURROGATES, _AFTER = 0x20, 0xD800, 0xE000
_MOST_WORDS = 200_000


class Text(NamedTuple):
    """A usable response about a presentation; `row` is where it came from."""

    text: str
    model: str
    source: str
    order: str
    prompt: str
    answer: int
    row: int


@dataclass(frozen=True, slots=True)
class Pair:
    """`cost` says how far it is from what the selection asks for: the lowest are taken."""

    chosen: Text
    rejected: Text
    cost: float

    @property
    def same_model(self) -> bool:
        return bool(self.chosen.model) and self.chosen.model == self.rejected.model

    @property
    def difference(self) -> int:
        """Characters that the chosen text has more."""
        return len(self.chosen.text) - len(self.rejected.text)

    @property
    def longer(self) -> int:
        """1: the chosen text, -1: the rejected one, 0: neither."""
        return (self.difference > 0) - (self.difference < 0)


@dataclass(frozen=True)
class Rules:
    """Those of `MergeSettings` that concern one presentation.

    Uses are limited (0: not) since in trials a chosen text that was repeated more often was copied.
    """

    count: int
    select: str
    same_model: str
    max_similarity: float
    seed: int
    # A rejected text may have the right answer, when its reasoning does not carry it.
    same_answer: bool = False
    chosen_uses: int = 2
    rejected_uses: int = 1
    # So many of each: the chosen text is longer, the rejected one is, neither.
    of_each_length: bool = False


class _Words(dict[str, str]):
    """Word -> the character that stands for it, kept from text to text."""

    def __missing__(self, word: str) -> str:
        code = _FIRST + len(self)
        code += (_AFTER - _SURROGATES) * (code >= _SURROGATES)
        # A million words in one comparison: some share a character.
        character = self[word] = chr(min(code, 0x10FFFF))
        return character

    def encode(self, text: str) -> str:
        """A text as a string of one character a word; case and white space do not count."""
        return "".join(map(self.__getitem__, text.casefold().split()))


_WORDS = _Words()


def similarity(first: str, second: str, distance: int | None = None) -> float:
    """1 - words to insert, delete or replace (Levenshtein) / words of the longer text, 0 to 1.

    Of encoded texts; of any strings it counts characters.
    """
    if distance is None:
        distance = Levenshtein.distance(first, second)
    return 1 - distance / max(len(first), len(second), 1)


def _unique(texts: Sequence[Text], rules: Rules) -> tuple[list[tuple[Text, str]], dict[int, str]]:
    """One of each text of each model with its code, in an order that the input's does not change.

    Also why the others are left out, by row.
    """
    first: dict[tuple[str, str], Text] = {}
    fates: dict[int, str] = {}
    for text in sorted(texts):
        key = _WORDS.encode(text.text), text.model
        if key in first:
            fates[text.row] = "identical"
        else:
            first[key] = text
    coded = [(text, code) for (code, _), text in first.items()]
    if len(coded) > _MOST_TEXTS:
        coded.sort(key=lambda one: (_chance(rules.seed, one[0].text), one[0]))
        fates |= {text.row: "unselected" for text, _ in coded[_MOST_TEXTS:]}
        coded = sorted(coded[:_MOST_TEXTS])
    kept: list[tuple[Text, str]] = []
    for text, code in coded:
        if any(
            other.model == text.model and similarity(code, known) > rules.max_similarity
            for other, known in kept
        ):
            fates[text.row] = "near_identical"
        else:
            kept.append((text, code))
    return kept, fates


def margin(text: str, answer: int, task: str) -> float:
    """How far the stated totals speak for the answer: their difference over their sum, -1 to 1.

    0 without totals.
    """
    totals, _ = totals_in(text, TASKS[task].noun)
    if not totals or answer not in (1, 2):
        return 0.0
    own, other = totals[answer].total, totals[3 - answer].total
    return float((own - other) / (own + other)) if own + other else 0.0


def _chance(*parts: object) -> float:
    """From 0 to 1, the same for the same parts."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def pairs_of(
    chosen: Sequence[Text], rejected: Sequence[Text], rules: Rules, place: str, task: str
) -> tuple[list[Pair], dict[int, str]]:
    """At most `rules.count` pairs of one presentation (of each length), the lowest cost first.

    Also why the rows that are in none of them are left out: identical and near_identical (to
    another text of its side and model, or to all that it could be paired with), no_partner (nothing
    on the other side that the rules let it be paired with) or unselected. `place` stands for the
    presentation in random choices. same_model: "require" pairs texts of one model only, "prefer"
    takes texts of two models only where no model has both kinds.
    """
    if len(_WORDS) > _MOST_WORDS:
        _WORDS.clear()
    first, fates = _unique(chosen, rules)
    second, others = _unique(rejected, rules)
    fates |= others
    margins: dict[int, float] = {}
    if rules.select == "hardest":
        margins = {text.row: margin(text.text, text.answer, task) for text, _ in first + second}
    pairs = []
    alike: set[int] = set()
    for a, a_code in first:
        for b, b_code in second:
            if a.answer == b.answer and not rules.same_answer:
                continue
            distance = Levenshtein.distance(a_code, b_code)
            if not distance or similarity(a_code, b_code, distance) > rules.max_similarity:
                alike.update((a.row, b.row))
                continue
            match rules.select:
                case "closest-length":
                    cost: float = abs(len(a_code) - len(b_code))
                case "random":
                    cost = _chance(rules.seed, place, a.text, b.text)
                case "hardest":
                    cost = margins[a.row] - margins[b.row]
                case _:
                    cost = distance
            pairs.append(Pair(a, b, cost))
    own = [pair for pair in pairs if pair.same_model]
    possible = own if rules.same_model == "require" else pairs
    pairs = own if own and rules.same_model == "prefer" else list(possible)
    # Stable: equal costs stay in the order of their texts.
    pairs.sort(key=lambda pair: pair.cost)
    if rules.select != "all":
        pairs = _taken(pairs, rules)
    partnered = {row for pair in possible for row in (pair.chosen.row, pair.rejected.row)}
    used = {row for pair in pairs for row in (pair.chosen.row, pair.rejected.row)}
    for text, _ in first + second:
        if text.row in partnered - used:
            fates[text.row] = "unselected"
        elif text.row not in used:
            fates[text.row] = "near_identical" if text.row in alike else "no_partner"
    return pairs, fates


def _taken(pairs: Sequence[Pair], rules: Rules) -> list[Pair]:
    """The first pairs that do not repeat a text too often; of each length in turn, if wanted."""
    if len(pairs) < 2:
        return list(pairs)
    # Of one pair in the end no text can be in two.
    limited = rules.count > 1
    most = (rules.chosen_uses or len(pairs), rules.rejected_uses or len(pairs))
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for number, pair in enumerate(pairs):
        waiting[pair.longer if rules.of_each_length else 0].append(number)
    taken: dict[int, list[int]] = {longer: [] for longer in waiting}
    uses: Counter[tuple[bool, str]] = Counter()
    while waiting:
        longer = min(waiting, key=lambda kind: len(taken[kind]))
        pair = pairs[number := waiting[longer].popleft()]
        first, second = (True, pair.chosen.text), (False, pair.rejected.text)
        if not limited or (uses[first] < most[0] and uses[second] < most[1]):
            uses.update((first, second))
            taken[longer].append(number)
        if not waiting[longer] or len(taken[longer]) == rules.count:
            del waiting[longer]
    return [pairs[number] for number in sorted(chain.from_iterable(taken.values()))]
