"""Which right and wrong texts about one presentation become pairs. No files, no database."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from cot_reward.judge import totals_in
from cot_reward.tasks import TASKS

# Texts of one side that are compared; time grows with the square of their number.
_MAX_TEXTS_PER_SIDE = 256
# Words become characters, so that a compiled function compares them. Surrogates are no characters.
_FIRST_CODE, _FIRST_SURROGATE, _AFTER_SURROGATES, _LAST_CODE = 0x20, 0xD800, 0xE000, 0x10FFFF
_MAX_CACHED_WORDS = 200_000


# same_model: one model wrote both. published: the trained model wrote the chosen text, another
# model the rejected one; in the published method that is the model of the first pass.
PAIR_KINDS = ("same_model", "published", "other_cross_model")
# --pair-from -> the kinds that it admits.
_ADMITTED_KINDS = {
    "prefer-same-model": PAIR_KINDS, "any": PAIR_KINDS, "same-model": ("same_model",),
    "published": ("published",), "both": ("same_model", "published"),
}  # fmt: skip


class Text(NamedTuple):
    """A usable response about a presentation; `row` is the number of its row.

    `asked` stands for the wording of the prompt (see `responses.Judged`).
    """

    text: str
    model: str
    source: str
    order: str
    prompt: str
    answer: int
    row: int
    asked: int = 0


def kind_of(chosen_model: str, rejected_model: str, trained_model: str | None) -> str:
    """One of PAIR_KINDS, by the models of the texts ("": not named); see `Pair.kind`."""
    if chosen_model and chosen_model == rejected_model:
        return "same_model"
    is_published = trained_model is not None and chosen_model == trained_model
    return "published" if is_published and rejected_model else "other_cross_model"


@dataclass(frozen=True, slots=True)
class Pair:
    """`cost` says how far the pair is from what the selection asks for: low costs are taken.

    `spare`: other pairs of the presentation use its texts up.
    """

    chosen: Text
    rejected: Text
    cost: float
    spare: bool = False

    @property
    def same_model(self) -> bool:
        return self.kind(None) == "same_model"

    def kind(self, trained_model: str | None) -> str:
        """One of PAIR_KINDS. `trained_model`: the model that is trained next; None: not known."""
        return kind_of(self.chosen.model, self.rejected.model, trained_model)

    @property
    def length_difference(self) -> int:
        """Characters of the chosen text minus characters of the rejected text."""
        return len(self.chosen.text) - len(self.rejected.text)

    @property
    def longer(self) -> int:
        """Which text is longer. 1: the chosen text, -1: the rejected text, 0: neither."""
        return (self.length_difference > 0) - (self.length_difference < 0)


@dataclass(frozen=True)
class Rules:
    """The settings of `MergeSettings` that concern one presentation.

    A text's uses are limited (0: unlimited): in trials, the model copied chosen texts that were
    repeated more often.
    """

    count: int
    select: str
    pair_from: str
    max_similarity: float
    seed: int
    trained_model: str | None = None
    # A rejected text may have the right answer, when its reasoning does not carry it.
    same_answer: bool = False
    chosen_uses: int = 2
    rejected_uses: int = 1
    # Up to `count` pairs each: the chosen text is longer, the rejected text is, neither is.
    of_each_length: bool = False
    # Pairs beyond these limits are kept as spare ones, so that balancing can choose among all.
    keep_spare: bool = False


class _Words(dict[str, str]):
    """Word -> the character that stands for it, kept from text to text."""

    def __missing__(self, word: str) -> str:
        code = _FIRST_CODE + len(self)
        code += (_AFTER_SURROGATES - _FIRST_SURROGATE) * (code >= _FIRST_SURROGATE)
        # With a million words in one comparison, the last words share a character.
        character = self[word] = chr(min(code, _LAST_CODE))
        return character

    def encode(self, text: str) -> str:
        """A text as a string with one character a word; case and white space do not count."""
        return "".join(map(self.__getitem__, text.casefold().split()))


_WORDS = _Words()


def similarity(first: str, second: str, distance: int | None = None) -> float:
    """1 - words to insert, delete or replace (Levenshtein) / words of the longer text, 0 to 1.

    The texts are encoded, one character a word. `distance`: their Levenshtein distance, if known.
    """
    if distance is None:
        distance = Levenshtein.distance(first, second)
    return 1 - distance / max(len(first), len(second), 1)


def _unique(texts: Sequence[Text], rules: Rules) -> tuple[list[tuple[Text, str]], dict[int, str]]:
    """The different texts of each model with their codes, whatever the order of the input.

    Also why the other texts are left out, by row.
    """
    first: dict[tuple[str, str, int], Text] = {}
    fates: dict[int, str] = {}
    for text in sorted(texts):
        key = _WORDS.encode(text.text), text.model, text.asked
        if key in first:
            fates[text.row] = "identical"
        else:
            first[key] = text
    coded = [(text, code) for (code, *_), text in first.items()]
    if len(coded) > _MAX_TEXTS_PER_SIDE:
        coded.sort(key=lambda entry: (_random_fraction(rules.seed, entry[0].text), entry[0]))
        fates |= {text.row: "unselected" for text, _ in coded[_MAX_TEXTS_PER_SIDE:]}
        coded = sorted(coded[:_MAX_TEXTS_PER_SIDE])
    kept: list[tuple[Text, str]] = []
    for text, code in coded:
        if any(
            (kept_text.model, kept_text.asked) == (text.model, text.asked)
            and similarity(code, kept_code) > rules.max_similarity
            for kept_text, kept_code in kept
        ):
            fates[text.row] = "near_identical"
        else:
            kept.append((text, code))
    return kept, fates


def margin(text: str, answer: int, task: str) -> float:
    """How far the stated totals support the answer: their difference over their sum, -1 to 1.

    0 without totals.
    """
    totals, _ = totals_in(text, TASKS[task].noun)
    if not totals or answer not in (1, 2):
        return 0.0
    own, other = totals[answer].total, totals[3 - answer].total
    return float((own - other) / (own + other)) if own + other else 0.0


def _random_fraction(*parts: object) -> float:
    """A number from 0 to 1 that is always the same for the same parts."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def pairs_of(
    chosen: Sequence[Text], rejected: Sequence[Text], rules: Rules, place: str, task: str
) -> tuple[list[Pair], dict[int, str]]:
    """At most `rules.count` pairs of one presentation (of each length), the lowest cost first; then
    the spare ones.

    Also why each row that is in no pair is left out: "identical" or "near_identical" (to another
    text of its side, model and prompt, or to every text that it could be paired with),
    "other_prompt" (the texts of the other side answer a prompt of another wording), "no_partner"
    (the rules pair it with no text of the other side) or "unselected". `place` stands for the
    presentation in random choices; its first word stands for the comparison.

    pair_from: "prefer-same-model" pairs texts of two models only
    where no model has both kinds; with "both" there are up to `rules.count` pairs of each kind.
    """
    if len(_WORDS) > _MAX_CACHED_WORDS:
        _WORDS.clear()
    right, fates = _unique(chosen, rules)
    wrong, wrong_fates = _unique(rejected, rules)
    fates |= wrong_fates
    margins: dict[int, float] = {}
    if rules.select == "hardest":
        margins = {text.row: margin(text.text, text.answer, task) for text, _ in right + wrong}
    pairs = []
    near_identical: set[int] = set()
    other_prompt: set[int] = set()
    for a, a_code in right:
        for b, b_code in wrong:
            if a.answer == b.answer and not rules.same_answer:
                continue
            if a.asked != b.asked:
                # The row of a pair has one prompt, and the other text would stand under it.
                other_prompt.update((a.row, b.row))
                continue
            distance = Levenshtein.distance(a_code, b_code)
            if not distance or similarity(a_code, b_code, distance) > rules.max_similarity:
                near_identical.update((a.row, b.row))
                continue
            match rules.select:
                case "closest-length":
                    cost: float = abs(len(a_code) - len(b_code))
                case "random":
                    cost = _random_fraction(rules.seed, place, a.text, b.text)
                case "hardest":
                    cost = margins[a.row] - margins[b.row]
                case _:
                    cost = distance
            pairs.append(Pair(a, b, cost))
    admitted = _ADMITTED_KINDS[rules.pair_from]
    possible = [pair for pair in pairs if pair.kind(rules.trained_model) in admitted]
    of_one_model = [pair for pair in possible if pair.same_model]
    prefer = rules.pair_from == "prefer-same-model"
    pairs = of_one_model if of_one_model and prefer else list(possible)
    # A stable sort: pairs of equal cost stay in the order of their texts.
    pairs.sort(key=lambda pair: pair.cost)
    if rules.select != "all":
        first = _limit_uses(pairs, rules, place)
        spare = [replace(pair, spare=True) for pair in pairs if pair not in first]
        pairs = first + spare if rules.keep_spare else first
    partnered = {row for pair in possible for row in (pair.chosen.row, pair.rejected.row)}
    used = {row for pair in pairs for row in (pair.chosen.row, pair.rejected.row)}
    for text, _ in right + wrong:
        if text.row in partnered - used:
            fates[text.row] = "unselected"
        elif text.row in near_identical - used:
            fates[text.row] = "near_identical"
        elif text.row not in used:
            fates[text.row] = "other_prompt" if text.row in other_prompt else "no_partner"
    return pairs, fates


def _limit_uses(pairs: Sequence[Pair], rules: Rules, place: str) -> list[Pair]:
    """The first pairs that do not repeat a text too often; lengths and kinds may take turns.

    Of lengths, the one with the fewest pairs begins; where they are equal, chance decides, for both
    orders of a comparison in opposite ways. If the closest pair began, pairs of one length could
    use up the texts of every comparison, and balancing would have to drop the pairs.
    """
    if len(pairs) < 2:
        return list(pairs)
    # If one pair is kept in the end, no text is in two pairs.
    limited = rules.count > 1
    max_uses = (rules.chosen_uses or len(pairs), rules.rejected_uses or len(pairs))
    # What takes turns: lengths, and kinds of pairs.
    waiting: dict[tuple[int, bool], deque[int]] = defaultdict(deque)
    for number, pair in enumerate(pairs):
        longer = pair.longer if rules.of_each_length else 0
        waiting[longer, rules.pair_from == "both" and pair.same_model].append(number)
    taken: dict[tuple[int, bool], list[int]] = {group: [] for group in waiting}
    turn = dict.fromkeys(waiting, 0.0)
    if rules.of_each_length:
        comparison, answer = place.partition(" ")[0], pairs[0].chosen.answer
        begins = 1 if (_random_fraction(rules.seed, comparison) < 0.5) == (answer == 1) else -1
        turn = {group: len(waiting[group]) + 0.5 * (group[0] != begins) for group in waiting}
    uses: Counter[tuple[bool, str]] = Counter()
    while waiting:
        group = min(waiting, key=lambda one: (len(taken[one]), turn[one]))
        pair = pairs[number := waiting[group].popleft()]
        chosen, rejected = (True, pair.chosen.text), (False, pair.rejected.text)
        if not limited or (uses[chosen] < max_uses[0] and uses[rejected] < max_uses[1]):
            uses.update((chosen, rejected))
            taken[group].append(number)
        if not waiting[group] or len(taken[group]) == rules.count:
            del waiting[group]
    return [pairs[number] for number in sorted(chain.from_iterable(taken.values()))]
