"""The wording that prompts share: the text before and after their captions. It reads no files.

A simpler way was tried in its place: the text up to the last marker and a pair of square brackets,
else the common prefix and suffix. Of the 75 cases in tests/rows/test_templates.py it got 39 right
and 34 wrong without an error.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cot_reward.records import PLACEHOLDERS, token_fault
from cot_reward.tasks.generation import CAPTION_MARKER

# The share of rows that may deviate from the wording of the rest.
MAX_DEVIATING_SHARE = 0.01

_MEDIA = "|".join(PLACEHOLDERS.values())
# Full-width punctuation is written as a number: many fonts show it like its ASCII counterpart.
_CLOSERS = dict(zip("[({\"'“‘「『【《\uff08\uff3b", "])}\"'”’」』】》\uff09\uff3d", strict=True))
# A quotation mark behind a letter is an apostrophe, or it closes.
_OPENER = r"<\w+>|[\[({“‘「『【《\uff08\uff3b]|(?<!\w)[\"']"
_AFTER_MARKER = re.compile(rf"\s*(?:({_OPENER})\s*)?")
# Where a caption may begin without a marker. The colon of a time or an address does not count.
_BOUNDARY = re.compile(rf"(?:\n|:(?![\w/])|\uff1a|{_MEDIA}|({_OPENER}))\s*")
# Wording may follow the caption on its line. It holds a placeholder or is a sentence of its own;
# anything else is what captions share by chance ("on a white background").
_TAIL = re.compile(
    rf"\s*(?:{_MEDIA})|(?:^|(?<=[.!?]))\s+(?=[A-Z]\S*(?:\s+\S+){{2}})|(?<=[。\uff01\uff1f])(?=\S)"
)
# A wording that is longer than another by fewer characters may be longer by chance.
_MIN_PHRASE_LETTERS = 10


@dataclass(frozen=True)
class Wording:
    """The text before the caption and the text after it.

    `closer` closes the bracket, quotation mark or tag around the caption ("": nothing opens).
    """

    prefix: str
    suffix: str
    closer: str = ""

    def caption_in(self, prompt: str) -> str | None:
        """The caption; None for a prompt with another wording, or without a usable caption."""
        end = len(prompt) - len(self.suffix)
        if not prompt.startswith(self.prefix) or not prompt.endswith(self.suffix):
            return None
        caption = prompt[len(self.prefix) : max(end, 0)]
        return caption if caption.strip() and not token_fault(caption) else None

    def difference(self, prompt: str) -> str:
        """What a prompt without a caption has in another way, for a message."""
        for text, shared, step in (
            (prompt, self.prefix, 1),
            (prompt[::-1], self.suffix[::-1], -1),
        ):
            at = _equal_characters(text, shared)
            if at < len(shared):
                place = slice(max(0, at - 20), at + 40)
                return f"{text[place][::step]!r} where others have {shared[place][::step]!r}"
        return f"no caption, or a special token in it, after {self.prefix[-40:]!r}"

    @property
    def letters(self) -> int:
        """How many characters it has, without white space."""
        return len("".join((self.prefix + self.suffix).split()))


def wording_around(captions: Mapping[str, str | None]) -> Wording | None:
    """The wording around the captions that rows name: each prompt's own, None where none is named.

    A short caption may occur in the wording, too. Its place is the one that most prompts have in
    common. None when no majority of the prompts has one wording.
    """
    # (length of the text before, length of the text after)
    places: Counter[tuple[int, int]] = Counter()
    for prompt, caption in captions.items():
        at = prompt.find(caption) if caption else -1
        while caption and at >= 0:
            places[at, len(prompt) - at - len(caption)] += 1
            at = prompt.find(caption, at + 1)
    if not places:
        return None
    ((before, after), _) = places.most_common(1)[0]
    wordings = Counter(
        (prompt[:before], prompt[len(prompt) - after :])
        for prompt, caption in captions.items()
        if caption and prompt[before : max(len(prompt) - after, 0)] == caption
    )
    wording, count = wordings.most_common(1)[0]
    return Wording(*wording) if count >= _majority(len(captions)) else None


def shared_wording(prompts: Sequence[str]) -> Wording | None:
    """The wording that most prompts share; None when nothing shows where a caption begins."""
    different = list(dict.fromkeys(prompts))
    majority = _majority(len(different))
    heads = marker_heads(different)
    head = heads[0][0] if heads and heads[0][1] >= majority else ""
    ours = _wording_of(different, majority, head)
    nearly_all = len(different) - int(MAX_DEVIATING_SHARE * len(different))
    wide = _wording_of(different, nearly_all, head)
    if ours is None or wide is None:
        return ours or wide
    missing = sum(ours.caption_in(prompt) is None for prompt in prompts)
    # Half of the captions may end in a line break by chance, but not in a whole phrase, or with
    # brackets around them. Then the other prompts deviate, and a shorter wording would hide it.
    longer = ours.letters >= wide.letters + _MIN_PHRASE_LETTERS or ours.closer != wide.closer
    return ours if longer or missing <= MAX_DEVIATING_SHARE * len(prompts) else wide


def marker_heads(prompts: Sequence[str]) -> list[tuple[str, int]]:
    """The texts up to the last marker, and how many prompts have each, the most frequent first."""
    return Counter(
        prompt[: prompt.rfind(CAPTION_MARKER) + len(CAPTION_MARKER)]
        for prompt in prompts
        if CAPTION_MARKER in prompt
    ).most_common()


def shared_prefix(texts: Sequence[str], count: int) -> str:
    """The longest text that at least `count` of the texts begin with."""
    # Texts with the same beginning are neighbours when sorted.
    texts = sorted(texts)
    best = ""
    for first, last in zip(texts, texts[count - 1 :], strict=False):
        if last.startswith(first[: len(best) + 1]) and len(first) > len(best):
            best = first[: _equal_characters(first, last)]
    return best


def shared_suffix(texts: Sequence[str], count: int) -> str:
    """The longest text that at least `count` of the texts end with."""
    return shared_prefix([text[::-1] for text in texts], count)[::-1]


def _majority(count: int) -> int:
    """More than half, but at least three of three or more."""
    return min(count, max(3, count // 2 + 1))


def _equal_characters(first: str, second: str) -> int:
    """How many characters at the beginning are the same."""
    low, high = 0, min(len(first), len(second))
    # By halves: comparing slices is far faster than comparing characters.
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _wording_of(prompts: Sequence[str], count: int, head: str) -> Wording | None:
    """The wording that at least `count` of the prompts share, and that begins with `head`."""
    for prefix, closer in _prefixes(prompts, count, head):
        rests = [prompt[len(prefix) :] for prompt in prompts if prompt.startswith(prefix)]
        ending = shared_suffix(rests, min(count, len(rests)))
        # A bracket that never closes belongs to the captions.
        if closer in ending:
            return Wording(prefix, _suffix(ending, closer), closer)
    return None


def _prefixes(prompts: Sequence[str], count: int, head: str) -> Iterator[tuple[str, str]]:
    """Texts that a caption may follow, the best first.

    Each comes with what closes the bracket at its end ("": there is no bracket).
    """
    if head:
        rests = [prompt[len(head) :] for prompt in prompts if prompt.startswith(head)]
        lead = _AFTER_MARKER.match(shared_prefix(rests, min(count, len(rests))))
        assert lead is not None
        yield head + lead[0], _closer(lead[1])
        if lead[1]:
            yield head + lead[0][: lead.start(1)], ""
        return
    shared = shared_prefix(prompts, count)
    for boundary in reversed(list(_BOUNDARY.finditer(shared))):
        closer = _closer(boundary[1])
        if not closer or closer not in shared[boundary.end() :]:
            yield shared[: boundary.end()], closer
    if not shared.strip():
        yield shared, ""


def _closer(opener: str | None) -> str:
    """What closes a bracket, quotation mark or tag; "" for None."""
    if opener is None:
        return ""
    return f"</{opener[1:-1]}>" if opener.startswith("<") else _CLOSERS[opener]


def _suffix(ending: str, closer: str) -> str:
    """The part of the shared ending that is wording, and not shared by the captions by chance."""
    line = ending.partition("\n")[0]
    if closer:
        at = ending.index(closer)
        # Of several closing brackets the last is the wording's: the caption is "[x]" in "[[x]]".
        while ending.startswith(closer, at + len(closer)):
            at += len(closer)
    else:
        tail = _TAIL.search(line)
        at = tail.start() if tail else len(line)
    return ending[len(ending[:at].rstrip()) :]
