"""Checks of comparisons before anything is spent on them: media, labels, duplicates, leaks."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.media.images import MAX_PIXELS, decode_checked, read_file
from cot_reward.media.paths import MediaError, resolve
from cot_reward.preparing.comparisons import RowCounts, labelled, words_of
from cot_reward.preparing.settings import CheckSettings
from cot_reward.records import Comparison, as_tuple
from cot_reward.store import atomic_file, dump
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import shown_media

# Findings that make the exit code 1; the others are only counted.
_FAULTS = ("bad_row", "bad_medium", "same_picture", "other_label", "leak")
_SHOWN = 10
_IMAGES_PER_BATCH = 512
# The hash of a picture of one colour, or of a plain gradient: it says nothing.
_EMPTY_LOOKS = (0, 2**64 - 1)


class Picture(NamedTuple):
    """What a picture is: `content` stands for its bytes, `look` for what it looks like."""

    content: bytes
    look: int


@dataclass(frozen=True)
class _Entry:
    """A comparison: its place, label, text in plain words, and media as numbers."""

    where: str
    key: str
    task: str
    label: int
    words: int
    media: tuple[int, ...]
    sides: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class _Read:
    """The comparisons of some files, and their media by number."""

    counts: RowCounts = field(default_factory=RowCounts)
    entries: list[_Entry] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


class _Offenders:
    """Findings by kind, written to a file as they come."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file
        self.counts: Counter[str] = Counter()
        self.shown: list[str] = []

    def add(self, kind: str, where: str, detail: str) -> None:
        self.counts[kind] += 1
        if kind in _FAULTS and len(self.shown) < _SHOWN:
            self.shown.append(f"  {where}: {kind}: {detail}")
        if self._file:
            self._file.write(dump({"where": where, "kind": kind, "detail": detail}) + "\n")


def check(settings: CheckSettings) -> int:
    """Check the comparisons of the files and print a table; returns the exit code.

    1 when a row or a medium cannot be used, when two rows of one comparison disagree, or when the
    data share a comparison or a picture with `--against`. Raises UserError.
    """
    with ExitStack() as stack:
        out = stack.enter_context(atomic_file(settings.out)) if settings.out else None
        offenders = _Offenders(out)
        ours = _read(settings.files, settings, offenders)
        if not ours.entries:
            raise UserError(f"{settings.files[0]}: no comparison in {ours.counts.rows:,} rows")
        pictures = _pictures(ours, settings, offenders)
        _find_duplicates(ours.entries, pictures, offenders)
        if settings.against:
            # A picture of theirs that cannot be opened is not our fault, and is no leak.
            theirs = _read(settings.against, settings, _Offenders(None))
            seen = _pictures(theirs, settings, _Offenders(None))
            _find_leaks(ours.entries, pictures, theirs.entries, seen, offenders)
    _print(ours, len(pictures), offenders, settings)
    return int(any(offenders.counts[kind] for kind in _FAULTS))


# --- reading --------------------------------------------------------------------------------------


def _read(files: Sequence[Path], settings: CheckSettings, offenders: _Offenders) -> _Read:
    found = _Read()

    def note_bad(where: str, why: str) -> None:
        offenders.add("bad_row", where, why)

    for _, where, comparison in labelled(files, settings, found.counts, note_bad):
        found.entries.append(_entry(comparison, where, found.numbers))
    return found


def _entry(comparison: Comparison, where: str, numbers: dict[str, int]) -> _Entry:
    def of(paths: Iterable[str]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(path, len(numbers)) for path in paths)

    first, second = comparison.candidates
    compares = TASKS[comparison.task].compares_media
    return _Entry(
        where, comparison.key, comparison.task, comparison.label, _words(comparison.text),
        of(shown_media(comparison, "given")),
        (of(as_tuple(first)), of(as_tuple(second))) if compares else ((), ()),
    )  # fmt: skip


def _words(text: str) -> int:
    """64 bits for the words of a text."""
    return int.from_bytes(sha256(words_of(text).encode("utf-8", "replace")).digest()[:8])


def _pictures(found: _Read, settings: CheckSettings, offenders: _Offenders) -> dict[int, Picture]:
    """The pictures by number, each opened once. One that cannot be opened is an offender."""
    paths = list(found.numbers)
    users: dict[int, str] = {}
    for entry in found.entries:
        for number in entry.media:
            users.setdefault(number, entry.where)
    pictures: dict[int, Picture] = {}
    numbers = iter(range(len(paths)))
    with (
        ThreadPoolExecutor(settings.workers) as pool,
        tqdm(total=len(paths), desc="images", unit=" images", disable=None) as bar,
    ):
        while batch := list(islice(numbers, _IMAGES_PER_BATCH)):
            opened = pool.map(lambda n: _open(paths[n], settings.media_root), batch)
            for number, picture in zip(batch, opened, strict=True):
                bar.update()
                if isinstance(picture, Picture):
                    pictures[number] = picture
                else:
                    offenders.add("bad_medium", users[number], f"{picture.reason}: {picture}")
    return pictures


def _open(path: str, root: Path) -> Picture | MediaError:
    # Loading it takes half a second, which other commands do without.
    from imagehash import dhash

    try:
        file = resolve(path, root)
        source = read_file(file, lambda stream: stream.read())
        image, _, _ = decode_checked(source, file, MAX_PIXELS)
    except MediaError as error:
        return error
    # The hash as a text is its bits in hexadecimal.
    return Picture(sha256(source).digest()[:16], int(str(dhash(image)), 16))


# --- findings -------------------------------------------------------------------------------------


def _find_duplicates(
    entries: Sequence[_Entry], pictures: dict[int, Picture], offenders: _Offenders
) -> None:
    """Comparisons that come again: by key, by the content of their media, by their looks."""
    by_key: dict[str, _Entry] = {}
    by_content: dict[tuple[object, ...], _Entry] = {}
    by_look: dict[tuple[object, ...], _Entry] = {}
    for entry in entries:
        first = by_key.setdefault(entry.key, entry)
        if first is not entry:
            kind = "duplicate" if _preferred(first) == _preferred(entry) else "other_label"
            offenders.add(kind, entry.where, f"the comparison of {first.where}")
            continue
        contents = _of_sides(entry, pictures, "content")
        if contents is None:
            continue
        if contents[0] == contents[1]:
            offenders.add("same_picture", entry.where, "both candidates have the same content")
            continue
        identity = (entry.task, entry.words, *sorted(contents))
        first = by_content.setdefault(identity, entry)
        if first is not entry:
            agree = _better(first, pictures, "content") == _better(entry, pictures, "content")
            kind = "duplicate_content" if agree else "other_label"
            offenders.add(kind, entry.where, f"text and pictures of {first.where}, other names")
            continue
        looks = _of_sides(entry, pictures, "look")
        if looks and not any(look in _EMPTY_LOOKS for side in looks for look in side):
            first = by_look.setdefault((entry.task, entry.words, *sorted(looks)), entry)
            if first is not entry:
                offenders.add("looks_alike", entry.where, f"looks like {first.where}")


def _preferred(entry: _Entry) -> object:
    """The candidate that the label prefers. Where candidates are texts, the key tells both."""
    return entry.sides[entry.label - 1] if entry.sides[0] else entry.label


def _better(entry: _Entry, pictures: dict[int, Picture], name: str) -> object:
    sides = _of_sides(entry, pictures, name)
    return sides[entry.label - 1] if sides else entry.label


def _of_sides(
    entry: _Entry, pictures: dict[int, Picture], name: str
) -> tuple[tuple[bytes | int, ...], ...] | None:
    """Content or look of both candidates; None for texts, and where a picture is bad."""
    if not entry.sides[0] or not all(number in pictures for side in entry.sides for number in side):
        return None
    return tuple(tuple(getattr(pictures[number], name) for number in side) for side in entry.sides)


def _find_leaks(
    ours: Sequence[_Entry],
    pictures: dict[int, Picture],
    theirs: Sequence[_Entry],
    seen: dict[int, Picture],
    offenders: _Offenders,
) -> None:
    """What the data share with held-out files: comparisons, pictures, texts."""
    keys = {entry.key: entry.where for entry in theirs}
    words = {entry.words: entry.where for entry in theirs}
    contents: dict[bytes, str] = {}
    looks: dict[int, str] = {}
    for entry in theirs:
        for number in entry.media:
            if number in seen:
                contents.setdefault(seen[number].content, entry.where)
                looks.setdefault(seen[number].look, entry.where)
    for look in _EMPTY_LOOKS:
        looks.pop(look, None)
    for entry in ours:
        own = [pictures[number] for number in entry.media if number in pictures]
        if entry.key in keys:
            offenders.add("leak", entry.where, f"the comparison of {keys[entry.key]}")
        elif where := next((contents[p.content] for p in own if p.content in contents), None):
            offenders.add("leak", entry.where, f"a picture of {where}")
        elif where := next((looks[p.look] for p in own if p.look in looks), None):
            offenders.add("looks_like_held_out", entry.where, f"a picture that looks like {where}")
        elif entry.words in words:
            offenders.add("held_out_text", entry.where, f"the text of {words[entry.words]}")


# --- the table ------------------------------------------------------------------------------------

_IN_WORDS = {
    "bad_row": "rows that cannot be read",
    "bad_medium": "pictures that cannot be used",
    "same_picture": "comparisons of a picture with itself",
    "other_label": "comparisons that come again with the other label",
    "leak": "comparisons with a comparison or picture of --against",
    "duplicate": "comparisons that come again",
    "duplicate_content": "comparisons that come again under other names of files",
    "looks_alike": "comparisons whose text and pictures look like those of another one",
    "looks_like_held_out": "comparisons with a picture that looks like one of --against",
    "held_out_text": "comparisons with a text of --against (no picture of it)",
}


def _print(found: _Read, pictures: int, offenders: _Offenders, settings: CheckSettings) -> None:
    counts = found.counts
    print(
        f"{counts.rows:,} rows: {len(found.entries):,} comparisons, {counts.ties:,} ties; "
        f"{pictures:,} pictures"
    )
    first_better: dict[str, list[int]] = defaultdict(list)
    for entry in found.entries:
        first_better[entry.task].append(entry.label == 1)
    for task, labels in sorted(first_better.items()):
        share = sum(labels) / len(labels)
        print(f"  {task}: {len(labels):,}, the first candidate is better in {share:.1%}")
    most_used, count = _most_used(found)
    print(
        f"  a picture is in at most {count:,} comparisons{f' ({most_used})' if count > 1 else ''}"
    )
    for kind, text in _IN_WORDS.items():
        if settings.against or "--against" not in text:
            print(f"{offenders.counts[kind]:>9,}  {text}" + (" (!)" * (kind in _FAULTS)))
    if offenders.shown:
        print("the first of (!):", *offenders.shown, sep="\n", file=sys.stderr)
    if settings.out:
        print(f"all of them, with their places: {settings.out}")


def _most_used(found: _Read) -> tuple[str, int]:
    uses = Counter(number for entry in found.entries for number in set(entry.media))
    if not uses:
        return "", 0
    ((number, count),) = uses.most_common(1)
    return next(islice(found.numbers, number, None)), count
