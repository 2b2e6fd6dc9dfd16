"""Held-out files (--exclude) of any form -> keys of the comparisons that no pair may be about."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cot_reward.errors import UserError
from cot_reward.media.paths import media_path
from cot_reward.pairing.engine.database import Engine
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


def _has_media(row: dict[str, Any], media_root: Path, prefix: str) -> bool | None:
    """Whether a medium of the row exists; None: the key does not depend on the media's paths."""
    names = ("images", "videos", "context", "candidates")
    paths = next((row[name] for name in names if row.get(name)), None)
    if _has_our_key(row) or not isinstance(paths, list):
        return None
    return any(
        os.path.exists(media_root / root / path)
        for path in paths
        for root in (prefix, "")
        if isinstance(path, str)
    )


def exclude(engine: Engine, files: Sequence[Path], media_root: Path, prefix: str) -> dict[str, str]:
    """Put the keys of the files into the tables `held_out` (by file) and `excluded`.

    `prefix` leads from the media root to what the paths in raw rows are relative to. Returns why a
    file is doubtful, by file: it is empty, as the merger's own eval.jsonl can be, or the media of
    its first rows do not exist, so that its paths may be relative to something else. Raises
    UserError for a row that cannot be read: its comparison could pass.
    """
    doubts: dict[str, str] = {}
    keys: list[str] = []
    schema = pa.schema([("file", pa.string()), ("comparison", pa.int64())])

    def flush(file: str) -> None:
        columns = [[file] * len(keys), list(map(digest, keys))]
        engine.add("held_out", pa.table(columns, schema=schema))
        keys.clear()

    flush("")
    for path in files:
        name, count = valid_unicode(str(path)), -1
        media_found: set[bool | None] = set()
        captions = {
            field: FileCaptions(path, partial(_prompt_in, field)) for field in _PROMPT_FIELDS
        }
        for count, (number, row) in enumerate(read_rows(path, may_be_empty=True)):
            try:
                if isinstance(row, ValueError):
                    raise row
                keys += keys_of(row, prefix, captions)
                if count < _ROWS_WITH_MEDIA_CHECK:
                    media_found.add(_has_media(row, media_root, prefix))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}; --exclude needs every row") from None
            if len(keys) >= _KEYS_PER_INSERT:
                flush(name)
        flush(name)
        if count < 0:
            doubts[name] = "it is empty; see that this is right"
        elif False in media_found and True not in media_found:
            doubts[name] = (
                "its images are not where its paths lead; say with --image-root what they are "
                "relative to"
            )
    # A comparison may have many rows: orders, samples.
    engine.run("CREATE TABLE excluded AS SELECT DISTINCT comparison FROM held_out")
    return doubts


def count_excluded(engine: Engine, files: Sequence[Path]) -> dict[str, int]:
    """How many comparisons of each held-out file the responses had, which were left out."""
    return {valid_unicode(str(path)): 0 for path in files} | dict(
        engine.run(
            "SELECT file, count(judged.comparison) "
            "FROM (SELECT DISTINCT file, comparison FROM held_out) "
            "LEFT JOIN (SELECT DISTINCT comparison FROM facts) AS judged USING (comparison) "
            "GROUP BY file ORDER BY file"
        )
    )


def warnings(excluded: Mapping[str, int], doubts: Mapping[str, str]) -> list[str]:
    """What to do about doubtful files without any comparison among the responses."""
    return [
        f"warning: --exclude {name}: none of its comparisons is among the responses, and {why}, or "
        "held-out comparisons may pass"
        for name, why in doubts.items()
        if not excluded[name]
    ]
