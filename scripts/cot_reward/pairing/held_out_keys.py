"""Held-out files (--exclude) of any form -> keys of the comparisons that no pair may be about."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cot_reward.errors import UserError
from cot_reward.media.paths import media_path
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import pictures_digest
from cot_reward.pairing.inputs import HeldOutFile
from cot_reward.records import Comparison, valid_unicode
from cot_reward.rows.adapters import adapter_for, comparison
from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.reading import read_rows
from cot_reward.rows.responses import digest, published, text_of
from cot_reward.rows.validation import has_own_fields, is_key
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER, caption_in

_KEYS_PER_INSERT = 10_000
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

    ways = [of_caption, lambda root: adapter_for(row, None)(row, root).key]
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


def _media_of(row: dict[str, Any]) -> list[Any] | None:
    """The media paths of a row of any form; None for a row without a list of them."""
    names = ("images", "videos", "context", "candidates")
    paths = next((row[name] for name in names if row.get(name)), None)
    return paths if isinstance(paths, list) else None


def _pictures_of(row: dict[str, Any], prefix: str) -> set[int]:
    """Digests of the media that a row compares, relative to the image root or the media root."""
    context, candidates = row.get("context") or [], row.get("candidates") or []
    if isinstance(context, list) and isinstance(candidates, list) and candidates:
        # Candidates that are texts give digests that no pictures have.
        paths = [*context, *candidates]
    else:
        paths = _media_of(row) or []
    found = set()
    for root in (prefix, "") if len(paths) > 1 else ():
        with suppress(ValueError):
            found.add(pictures_digest([media_path(path, root) for path in paths]))
    return found


def _has_media(row: dict[str, Any], media_root: Path, prefix: str) -> bool | None:
    """Whether a medium of the row exists; None: the key does not depend on the media's paths."""
    paths = _media_of(row)
    if _has_our_key(row) or paths is None:
        return None
    return any(
        os.path.exists(media_root / root / path)
        for path in paths
        for root in (prefix, "")
        if isinstance(path, str)
    )


@dataclass
class Met:
    """What the responses have of a held-out file.

    `comparisons`: left out. `of_same_pictures`: comparisons of the same pictures under another
    caption, which are not left out.
    """

    comparisons: int = 0
    of_same_pictures: int = 0


def exclude(engine: Engine, files: Sequence[HeldOutFile], media_root: Path) -> dict[str, str]:
    """Put the files' rows into the tables `held_out`, `held_out_pictures` and `excluded`.

    Returns why a file is doubtful, by file: it is empty, as the merger's own eval.jsonl can be, or
    the media of its first rows do not exist, so that its paths may be relative to something else.
    Raises UserError for a row that cannot be read: its comparison could pass.
    """
    doubts: dict[str, str] = {}
    held: dict[str, list[int]] = {"held_out": [], "held_out_pictures": []}
    schema = pa.schema([("file", pa.string()), ("digest", pa.int64())])

    def flush(file: str) -> None:
        for table, digests in held.items():
            columns = [[file] * len(digests), digests]
            engine.add(table, pa.table(columns, schema=schema))
            digests.clear()

    flush("")
    for path, prefix in files:
        name, count = valid_unicode(str(path)), -1
        media_found: set[bool | None] = set()
        captions = {
            field: FileCaptions(path, partial(_prompt_in, field)) for field in _PROMPT_FIELDS
        }
        for count, (number, row) in enumerate(read_rows(path, may_be_empty=True)):
            try:
                if isinstance(row, ValueError):
                    raise row
                held["held_out"] += map(digest, keys_of(row, prefix, captions))
                held["held_out_pictures"] += _pictures_of(row, prefix)
                if count < _ROWS_WITH_MEDIA_CHECK:
                    media_found.add(_has_media(row, media_root, prefix))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}; --exclude needs every row") from None
            if len(held["held_out"]) >= _KEYS_PER_INSERT:
                flush(name)
        flush(name)
        if count < 0:
            doubts[name] = "it is empty; see that this is right"
        elif False in media_found and True not in media_found:
            doubts[name] = (
                "its images are not where its paths lead; say with --image-root or "
                "--exclude-image-root what they are relative to"
            )
    # A comparison may have many rows: orders, samples.
    engine.run("CREATE TABLE excluded AS SELECT DISTINCT digest AS comparison FROM held_out")
    return doubts


def count_met(engine: Engine, files: Sequence[HeldOutFile]) -> dict[str, Met]:
    """What the responses have of each held-out file."""
    met = {valid_unicode(str(file.path)): Met() for file in files}
    for name, comparisons in engine.run(
        "SELECT file, count(DISTINCT comparison) FROM held_out "
        "JOIN facts ON comparison = digest GROUP BY file"
    ):
        met[name].comparisons = comparisons
    for name, comparisons in engine.run(
        "SELECT file, count(DISTINCT comparison) FROM held_out_pictures "
        "JOIN facts ON pictures = digest ANTI JOIN excluded USING (comparison) GROUP BY file"
    ):
        met[name].of_same_pictures = comparisons
    return met


def warnings(met: Mapping[str, Met], doubts: Mapping[str, str]) -> Iterator[str]:
    """What to do about files that leave nothing out, and about pictures under other captions."""
    for name, found in met.items():
        if not found.comparisons:
            why = doubts.get(
                name,
                "its paths may be relative to another folder (--exclude-image-root) or its "
                "captions may be worded otherwise; see that it is other data",
            )
            yield (
                f"warning: --exclude {name}: none of its comparisons is among the responses, and "
                f"{why}, or held-out comparisons may pass"
            )
        if found.of_same_pictures:
            yield (
                f"warning: --exclude {name}: {found.of_same_pictures:,} comparisons of the "
                "responses show the same pictures as one of its rows under another caption, and "
                "are not left out; if their captions differ by spaces or spelling only, mend the "
                "file's captions"
            )
