"""Checks of comparisons before anything is spent on them: media, labels, duplicates, leaks."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.media.images import MAX_PIXELS, decode_checked, read_file
from cot_reward.media.paths import MediaError, media_path, resolve
from cot_reward.preparing.comparisons import RowCounts, labelled, words_of
from cot_reward.preparing.looks import Looks, look_of
from cot_reward.preparing.settings import CheckSettings
from cot_reward.records import Comparison, as_tuple
from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.file_flags import held_out_files
from cot_reward.rows.held_out import captions_of, keys_of, media_of
from cot_reward.rows.reading import read_rows
from cot_reward.rows.responses import text_of
from cot_reward.store import atomic_file, dump
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER
from cot_reward.tasks.prompts import shown_media

# Findings that make the exit code 1; the others are only counted.
_FAULTS = (
    "bad_row", "bad_medium", "same_picture", "other_label", "leak", "unread_held_out",
)  # fmt: skip
_SHOWN = 10
_IMAGES_PER_BATCH = 512


class Picture(NamedTuple):
    """What a picture is: `content` stands for its bytes, `look` for all that look like it.

    `look` is None for a picture without structure.
    """

    content: bytes
    look: int | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A comparison: its place, label, text in plain words, and media as numbers."""

    where: str
    key: bytes
    task: str
    label: int
    words: int
    # 64 bits for the candidate that the label prefers.
    preferred: int
    context: tuple[int, ...]
    media: tuple[int, ...]
    # Of each candidate its media; empty for texts.
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
        ours = _read(settings, offenders)
        if not ours.entries:
            shown = "".join(f"\n{line}" for line in offenders.shown)
            raise UserError(
                f"{settings.files[0]}: no comparison in {ours.counts.rows:,} rows{shown}"
            )
        users = {number: e.where for e in reversed(ours.entries) for number in e.media}
        looks = Looks()
        pictures = _pictures(list(ours.numbers), users, "bad_medium", settings, looks, offenders)
        _find_duplicates(ours.entries, pictures, offenders)
        if settings.against:
            _find_leaks(ours.entries, pictures, _held_out(settings, looks, offenders), offenders)
    _print(ours, len(pictures), offenders, settings)
    return int(any(offenders.counts[kind] for kind in _FAULTS))


# --- reading --------------------------------------------------------------------------------------


def _read(settings: CheckSettings, offenders: _Offenders) -> _Read:
    found = _Read()

    def note_bad(where: str, why: str) -> None:
        offenders.add("bad_row", where, why)

    for _, where, comparison in labelled(settings, found.counts, note_bad):
        found.entries.append(_entry(comparison, where, found.numbers))
    return found


def _entry(comparison: Comparison, where: str, numbers: dict[str, int]) -> _Entry:
    def of(paths: Iterable[str]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(path, len(numbers)) for path in paths)

    first, second = comparison.candidates
    compares = TASKS[comparison.task].compares_media
    preferred = "\n".join(as_tuple(comparison.candidates[comparison.label - 1]))
    return _Entry(
        where, bytes.fromhex(comparison.key), comparison.task, comparison.label,
        _digest(words_of(comparison.text)), _digest(preferred),
        of(comparison.context), of(shown_media(comparison, "given")),
        (of(as_tuple(first)), of(as_tuple(second))) if compares else ((), ()),
    )  # fmt: skip


def _digest(text: str) -> int:
    return int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:8])


@dataclass
class _HeldOut:
    """What held-out rows hold, each with the place of one of them."""

    keys: dict[str, str] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    contents: dict[bytes, str] = field(default_factory=dict)
    looks: dict[int, str] = field(default_factory=dict)


def _held_out(settings: CheckSettings, looks: Looks, offenders: _Offenders) -> _HeldOut:
    """Keys, texts and pictures of the held-out files; their labels do not matter.

    A row that cannot be read is an error, since its comparison could pass; a picture that cannot be
    opened is an offender. Raises UserError.
    """
    found = _HeldOut()
    paths: dict[str, str] = {}
    files = held_out_files(
        settings.against, settings.against_image_root, settings.image_root or settings.media_root,
        settings.media_root, "--against",
    )  # fmt: skip
    for path, prefix in files:
        captions = captions_of(path)
        for number, row in tqdm(read_rows(path), path.name, unit=" rows", disable=None):
            where = f"{path}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                keys = keys_of(row, prefix, captions)
            except ValueError as error:
                raise UserError(f"{where}: {error}; --against needs every row") from None
            for key in keys:
                found.keys.setdefault(key, where)
            for text in _texts(row, captions):
                found.words.setdefault(_digest(words_of(text)), where)
            is_of_texts = row.get("task") in TASKS and not TASKS[row["task"]].compares_media
            media = row.get("context") if is_of_texts else [
                *(row.get("context") or []), *(media_of(row) or []),
            ]  # fmt: skip
            for medium in media or []:
                paths.setdefault(_below_root(medium, prefix, settings.media_root), where)
    numbered = list(paths)
    users = dict(enumerate(paths.values()))
    opened = _pictures(numbered, users, "unread_held_out", settings, looks, offenders)
    for number, picture in opened.items():
        found.contents.setdefault(picture.content, users[number])
        if picture.look is not None:
            found.looks.setdefault(picture.look, users[number])
    return found


def _texts(row: Mapping[str, Any], captions: Mapping[str, FileCaptions]) -> Iterator[str]:
    """The caption, instruction or question of a row of any form."""
    for name in ("text", "prompt"):
        if isinstance(row.get(name), str) and CAPTION_MARKER not in row[name]:
            yield row[name]
    for name, find in captions.items():
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            prompt = row[name]
            yield find(prompt if isinstance(prompt, str) else text_of(prompt))


def _below_root(path: Any, prefix: str, root: Path) -> str:
    """A medium's path below the media root: it may be relative to the image root, or to this."""
    for start in (prefix, ""):
        with suppress(ValueError):
            found = media_path(path, start)
            if (root / found).exists():
                return found
    return str(path)


def _pictures(
    paths: Sequence[str],
    users: Mapping[int, str],
    kind: str,
    settings: CheckSettings,
    looks: Looks,
    offenders: _Offenders,
) -> dict[int, Picture]:
    """The pictures by number, each opened once. One that cannot be opened is an offender.

    `users`: the place of a row with this picture.
    """
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
                if isinstance(picture, MediaError):
                    offenders.add(kind, users[number], f"{picture.reason}: {picture}")
                else:
                    content, look = picture
                    pictures[number] = Picture(content, looks.number(look))
    return pictures


def _open(path: str, root: Path) -> tuple[bytes, int] | MediaError:
    """What stands for the bytes of a picture, and its perceptual hash; or why there is none."""
    try:
        file = resolve(path, root)
        source = read_file(file, lambda stream: stream.read())
        image, _, _ = decode_checked(source, file, MAX_PIXELS)
    except MediaError as error:
        return error
    return sha256(source).digest()[:16], look_of(image)


# --- findings -------------------------------------------------------------------------------------


def _find_duplicates(
    entries: Sequence[_Entry], pictures: dict[int, Picture], offenders: _Offenders
) -> None:
    """Comparisons that come again: by key, by the content of their media, by their looks."""
    by_key: dict[bytes, _Entry] = {}
    # By 64 bits each, which take a fraction of what they stand for.
    by_content: dict[int, _Entry] = {}
    by_look: dict[int, _Entry] = {}
    for entry in entries:
        first = by_key.setdefault(entry.key, entry)
        if first is not entry:
            kind = "duplicate" if first.preferred == entry.preferred else "other_label"
            offenders.add(kind, entry.where, f"the comparison of {first.where}")
            continue
        contents = _of_sides(entry, pictures, "content")
        if contents is None:
            continue
        if contents[0] == contents[1]:
            offenders.add("same_picture", entry.where, "both candidates have the same content")
            continue
        context = tuple(pictures[n].content for n in entry.context if n in pictures)
        identity = (entry.task, entry.words, context, *sorted(contents))
        first = by_content.setdefault(hash(identity), entry)
        if first is not entry:
            agree = _better(first, pictures, "content") == _better(entry, pictures, "content")
            kind = "duplicate_content" if agree else "other_label"
            offenders.add(kind, entry.where, f"text and pictures of {first.where}, other names")
            continue
        looks = _of_sides(entry, pictures, "look")
        if looks and not any(look is None for side in looks for look in side):
            seen_as = tuple(pictures[n].look for n in entry.context if n in pictures)
            identity = (entry.task, entry.words, seen_as, *sorted(looks))
            first = by_look.setdefault(hash(identity), entry)
            if first is not entry:
                offenders.add("looks_alike", entry.where, f"looks like {first.where}")


def _better(entry: _Entry, pictures: dict[int, Picture], name: str) -> object:
    sides = _of_sides(entry, pictures, name)
    return sides[entry.label - 1] if sides else entry.label


def _of_sides(
    entry: _Entry, pictures: dict[int, Picture], name: str
) -> tuple[tuple[Any, ...], ...] | None:
    """Content or look of both candidates; None for texts, and where a picture is bad."""
    if not entry.sides[0] or not all(number in pictures for side in entry.sides for number in side):
        return None
    return tuple(tuple(getattr(pictures[number], name) for number in side) for side in entry.sides)


def _find_leaks(
    ours: Sequence[_Entry],
    pictures: dict[int, Picture],
    held_out: _HeldOut,
    offenders: _Offenders,
) -> None:
    """What the data share with held-out files: comparisons, pictures, texts."""
    contents, looks = held_out.contents, held_out.looks
    for entry in ours:
        own = [pictures[number] for number in entry.media if number in pictures]
        if where := held_out.keys.get(entry.key.hex()):
            offenders.add("leak", entry.where, f"the comparison of {where}")
        elif where := next((contents[p.content] for p in own if p.content in contents), None):
            offenders.add("leak", entry.where, f"a picture of {where}")
        elif where := next((looks[p.look] for p in own if p.look in looks), None):
            offenders.add("looks_like_held_out", entry.where, f"a picture that looks like {where}")
        elif where := held_out.words.get(entry.words):
            offenders.add("held_out_text", entry.where, f"the text of {where}")


# --- the table ------------------------------------------------------------------------------------

_IN_WORDS = {
    "bad_row": "rows that cannot be read",
    "bad_medium": "pictures that cannot be used",
    "same_picture": "comparisons of a picture with itself",
    "other_label": "comparisons that come again with the other label",
    "leak": "comparisons with a comparison or picture of --against",
    "unread_held_out": "pictures of --against that cannot be opened, so that leaks may pass",
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
