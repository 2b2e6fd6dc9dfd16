"""Held-out files (--exclude) of any form: which comparisons they hold, and what is said of them.

The client, the merger and `check_rows.py` keep these comparisons out of training. The merger joins
their digests in its database; the others look them up in memory (`HeldOut`).
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.media.paths import media_path
from cot_reward.records import Comparison, valid_unicode
from cot_reward.rows.adapters import adapter_for, comparison, is_judged
from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.file_flags import HeldOutFile
from cot_reward.rows.reading import read_rows
from cot_reward.rows.responses import digest, pictures_digest, published, text_of
from cot_reward.rows.validation import has_own_fields, is_key
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER, caption_in

# Fields that may hold a complete prompt.
_PROMPT_FIELDS = ("problem", "prompt", "messages", "conversations")
# Rows at the beginning of a file whose media are looked for.
_ROWS_WITH_MEDIA_CHECK = 100


def _prompt_text(prompt: Any) -> str:
    """The text of a prompt: a string, or the last turn of the user in messages."""
    if isinstance(prompt, list):
        user_turns = [
            turn
            for turn in prompt
            if isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")
        ]
        return text_of(user_turns)
    return text_of(prompt)


def _prompt_in(field: str, row: dict[str, Any]) -> str:
    return _prompt_text(row[field])


def captions_of(path: Path) -> dict[str, FileCaptions]:
    """For `keys_of`: what finds the captions in the prompts of a file."""
    return {field: FileCaptions(path, partial(_prompt_in, field)) for field in _PROMPT_FIELDS}


def _has_our_key(row: dict[str, Any]) -> bool:
    """Whether the row's `id` is our key; rows of other projects may have a digest there."""
    return is_key(row.get("id")) and (has_own_fields(row) or len(row) == 1)


def keys_of(
    row: dict[str, Any], prefix: str, captions: Mapping[str, FileCaptions] | None = None
) -> set[str]:
    """Every key that a row may stand for: raw data, responses or pairs, ours or another project's.

    There are several: the row's paths may be relative to the image root or to the media root, and
    a row of another project may have a digest of its own as `id`. `captions` finds the caption in
    the prompt of each of `_PROMPT_FIELDS`. Raises ValueError when there is no key.
    """
    keys = set()
    kind = "video" if row.get("videos") else "image"

    def of_prompt(name: str, root: str) -> str:
        find_caption = captions[name] if captions else caption_in
        return published({**row, "task": None}, _prompt_text(row[name]), root, find_caption).key

    def of_caption(root: str) -> str:
        if "problem" in row or CAPTION_MARKER in row["prompt"]:
            raise ValueError("a complete prompt, no caption")
        first, second = (media_path(path, root) for path in row[f"{kind}s"])
        return Comparison(f"{kind}_generation", row["prompt"], (first, second), 1).key

    def of_plain(task: str, root: str) -> str:
        return comparison.adapt({**row, "task": task, "label": 1}, root).key

    ways = [of_caption]
    # Of a judged row the adapter only proves that the key is its `id`, which can take a second.
    if not is_judged(row):
        ways.append(lambda root: adapter_for(row, None)(row, root).key)
    if "candidates" in row:
        # A row may leave its task to the flag --task of the client.
        ways += [partial(of_plain, task) for task in ([row["task"]] if row.get("task") else TASKS)]
    ways += [partial(of_prompt, name) for name in _PROMPT_FIELDS if row.get(name)]
    problem = "there is no prompt"
    for way in ways:
        for root in dict.fromkeys((prefix, "")):
            try:
                keys.add(way(root))
            except (ValueError, UserError) as error:
                problem = str(error)
            # A row of another form makes a reader fail in these ways.
            except (LookupError, TypeError, AttributeError, RecursionError):
                continue
    if not keys and not _has_our_key(row):
        raise ValueError(f"no key as 'id', and none follows from the row ({problem})")
    # The id counts beside computed keys: these are wrong if a template goes on after the caption.
    return keys | {row["id"]} if is_key(row.get("id")) else keys


def media_of(row: dict[str, Any]) -> list[Any] | None:
    """The media paths of a row of any form; None for a row without a list of them."""
    names = ("images", "videos", "context", "candidates")
    paths = next((row[name] for name in names if row.get(name)), None)
    return _flat(paths) if isinstance(paths, list) else None


def _flat(candidates: list[Any]) -> list[Any]:
    """Images as they are, and the frames of videos, which are lists."""
    return [path for one in candidates for path in (one if isinstance(one, list) else [one])]


def pictures_of(row: dict[str, Any], prefix: str) -> set[int]:
    """Digests of the media that a row compares, relative to the image root or the media root."""
    context, candidates = row.get("context") or [], row.get("candidates") or []
    if isinstance(context, list) and isinstance(candidates, list) and candidates:
        # Candidates that are texts give digests that no pictures have.
        paths = [*context, *_flat(candidates)]
    else:
        paths = media_of(row) or []
    found = set()
    for root in (prefix, "") if len(paths) > 1 else ():
        with suppress(ValueError):
            found.add(pictures_digest([media_path(path, root) for path in paths]))
    return found


def _has_media(row: dict[str, Any], media_root: Path, prefix: str) -> bool | None:
    """Whether a medium of the row exists; None: the key does not depend on the media's paths."""
    paths = media_of(row)
    if _has_our_key(row) or paths is None:
        return None
    return any(
        os.path.exists(media_root / root / path)
        for path in paths
        for root in (prefix, "")
        if isinstance(path, str)
    )


@dataclass(frozen=True)
class HeldOutRow:
    """Digests of the keys that a row may stand for, and of the media that it compares."""

    keys: set[int]
    pictures: set[int]


class HeldOutRows:
    """The rows of a held-out file: iterate once. Then `count` and `doubt` tell of the file.

    `doubt` is why the file is doubtful, "" if it is not: it is empty, as the merger's own
    eval.jsonl can be, or the media of its first rows do not exist, so that its paths may be
    relative to something else. Iterating raises UserError for a row that cannot be read: its
    comparison could pass.
    """

    def __init__(self, file: HeldOutFile, media_root: Path) -> None:
        self._file, self._media_root = file, media_root
        self.name = valid_unicode(str(file.path))
        self.count = 0
        self.doubt = ""

    def __iter__(self) -> Iterator[HeldOutRow]:
        path, prefix = self._file
        media_found: set[bool | None] = set()
        captions = captions_of(path)
        for number, row in read_rows(path, may_be_empty=True):
            try:
                if isinstance(row, ValueError):
                    raise row
                keys = set(map(digest, keys_of(row, prefix, captions)))
                found = HeldOutRow(keys, pictures_of(row, prefix))
                if self.count < _ROWS_WITH_MEDIA_CHECK:
                    media_found.add(_has_media(row, self._media_root, prefix))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}; --exclude needs every row") from None
            self.count += 1
            yield found
        if not self.count:
            self.doubt = "it is empty; see that this is right"
        elif False in media_found and True not in media_found:
            self.doubt = (
                "its images are not where its paths lead; say with --image-root or "
                "--exclude-image-root what they are relative to"
            )


@dataclass
class Met:
    """What other data have of a held-out file.

    `comparisons`: left out. `of_same_pictures`: comparisons of the same pictures under another
    caption, which are not left out.
    """

    comparisons: int = 0
    of_same_pictures: int = 0


def exclude_warnings(
    met: Mapping[str, Met], doubts: Mapping[str, str], others: str
) -> Iterator[str]:
    """What to do about files that leave nothing out, and about pictures under other captions.

    `others` names the data that were compared with the files ("the responses").
    """
    for name, found in met.items():
        if not found.comparisons:
            why = doubts.get(
                name,
                "its paths may be relative to another folder (--exclude-image-root) or its "
                "captions may be worded otherwise; see that it is other data",
            )
            yield (
                f"warning: --exclude {name}: none of its comparisons is among {others}, and "
                f"{why}, or held-out comparisons may pass"
            )
        if found.of_same_pictures:
            yield same_pictures_warning(name, found.of_same_pictures, others)


def same_pictures_warning(name: str, count: int, others: str) -> str:
    """What to do about comparisons of a held-out file's pictures under other captions."""
    return (
        f"warning: --exclude {name}: {count:,} comparisons of {others} show the same pictures as "
        "one of its rows under another caption, and are not left out; if their captions differ by "
        "spaces or spelling only, mend the file's captions"
    )


class HeldOut:
    """The comparisons of held-out files, in memory: some 100 bytes for each key of a row.

    `met` (by file) counts the different comparisons that were looked up and found, `left_out` those
    of all files together. `doubts` says which files are doubtful and why, `row_counts` has the rows
    of each file. `all_have_pictures`: of every row it is known what it compares. Raises UserError
    for a row that cannot be read.
    """

    def __init__(self, files: Sequence[HeldOutFile], media_root: Path) -> None:
        # Digest -> the files that hold it, a bit for each.
        self._keys: dict[int, int] = {}
        self._pictures: dict[int, int] = {}
        self._counted: set[int] = set()
        self.met: dict[str, Met] = {}
        self.left_out = 0
        self.doubts: dict[str, str] = {}
        self.row_counts: dict[str, int] = {}
        self.all_have_pictures = True
        for number, file in enumerate(files):
            rows, bit = HeldOutRows(file, media_root), 1 << number
            for row in rows:
                for digests, table in ((row.keys, self._keys), (row.pictures, self._pictures)):
                    for value in digests:
                        table[value] = table.get(value, 0) | bit
                self.all_have_pictures &= bool(row.pictures)
            # One file may be given with several roots.
            self.met.setdefault(rows.name, Met())
            self.row_counts[rows.name] = rows.count
            if rows.doubt:
                self.doubts[rows.name] = rows.doubt
        self._names = [valid_unicode(str(file.path)) for file in files]

    def files_with(self, keys: Collection[str]) -> list[str]:
        """The held-out files that hold a comparison with one of these keys."""
        return self._named(self._keys, map(digest, keys))

    def files_with_pictures(self, pictures: Collection[int]) -> list[str]:
        """The held-out files that hold a comparison of media with one of these digests."""
        return self._named(self._pictures, pictures)

    def look_up(self, keys: Collection[str], pictures: Collection[int]) -> list[str]:
        """As `files_with`; the comparison is counted in `met`, once however often it comes."""
        holding = self.files_with(keys)
        alike = [] if holding else self.files_with_pictures(pictures)
        if holding or alike:
            identity = min(map(digest, keys))
            if identity not in self._counted:
                self._counted.add(identity)
                self.left_out += bool(holding)
                for name in holding:
                    self.met[name].comparisons += 1
                for name in alike:
                    self.met[name].of_same_pictures += 1
        return holding

    def _named(self, table: Mapping[int, int], digests: Iterable[int]) -> list[str]:
        bits = 0
        for value in digests:
            bits |= table.get(value, 0)
        names = [name for number, name in enumerate(self._names) if bits >> number & 1]
        return list(dict.fromkeys(names))
