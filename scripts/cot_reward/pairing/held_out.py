"""Held-out files of any form -> the keys of the comparisons that no pair may be about."""

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
from cot_reward.rows.reading import read_rows
from cot_reward.rows.responses import digest, published, text_of
from cot_reward.rows.validation import has_own_fields, is_key
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER

_TOGETHER = 10_000
# Rows of a file whose media are looked for.
_LOOKED_AT = 100


def _asked(prompt: Any) -> str:
    """The text of a prompt: a string, or what the user last says in messages."""
    if isinstance(prompt, list):
        said = [
            turn
            for turn in prompt
            if isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")
        ]
        return text_of(said)
    return text_of(prompt)


def _has_our_key(row: dict[str, Any]) -> bool:
    """Whether the row's `id` alone tells what it is about; others may have a digest there."""
    return is_key(row.get("id")) and (has_own_fields(row) or len(row) == 1)


def keys_of(row: dict[str, Any], prefix: str) -> set[str]:
    """Every key that a row may stand for: raw data, responses or pairs, ours or another's.

    Several, since its paths may be relative to the image root or the media root already, and since
    rows of others may have a digest of their own as `id`. Raises ValueError when there is none.
    """
    keys = set()
    kind = "video" if row.get("videos") else "image"

    def of_prompt(name: str, root: str) -> str:
        return published({**row, "task": None}, _asked(row[name]), root).key

    def of_caption(root: str) -> str:
        if "problem" in row or CAPTION_MARKER in row["prompt"]:
            raise ValueError("a whole prompt, no caption")
        first, second = (media_path(path, root) for path in row[f"{kind}s"])
        return Comparison(f"{kind}_generation", row["prompt"], (first, second), 1).key

    def of_plain(task: str, root: str) -> str:
        return comparison.adapt({**row, "task": task, "label": 1}, root).key

    ways = [of_caption, lambda root: adapter_for(row, None)(row, root).key]
    if "candidates" in row:
        # A row may leave its task to the client's --task.
        ways += [partial(of_plain, task) for task in ([row["task"]] if row.get("task") else TASKS)]
    ways += [
        partial(of_prompt, name)
        for name in ("problem", "prompt", "messages", "conversations")
        if row.get(name)
    ]
    problem = "there is no prompt"
    for way in ways:
        for root in dict.fromkeys((prefix, "")):
            try:
                keys.add(way(root))
            except (ValueError, UserError) as error:
                problem = str(error)
            # What a row of another form does to code that expects one.
            except (LookupError, TypeError, AttributeError, RecursionError):
                continue
    if not keys and not _has_our_key(row):
        raise ValueError(f"no key as 'id', and none follows from the row ({problem})")
    # Also beside computed ones: those are wrong where a template goes on after the caption.
    return keys | {row["id"]} if is_key(row.get("id")) else keys


def _shows(row: dict[str, Any], media_root: Path, prefix: str) -> bool | None:
    """Whether a medium of the row lies where its paths lead; None: it is known without them."""
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
    """Put the keys of the files into the engine's tables `given` (by file) and `excluded`.

    `prefix` leads from the media root to what the paths in raw rows are relative to. Returns what
    is doubtful, by file: empty ones, as the merger's own eval.jsonl can be, and those of whose
    first rows no medium is there, since their paths may be relative to something else. Raises
    UserError for a row that cannot be read: its comparison could pass.
    """
    doubts: dict[str, str] = {}
    keys: list[str] = []
    schema = pa.schema([("file", pa.string()), ("comparison", pa.int64())])

    def flush(file: str) -> None:
        engine.add("given", pa.table([[file] * len(keys), list(map(digest, keys))], schema=schema))
        keys.clear()

    flush("")
    for path in files:
        name, count = valid_unicode(str(path)), -1
        shown: set[bool | None] = set()
        for count, (number, row) in enumerate(read_rows(path, may_be_empty=True)):
            try:
                if isinstance(row, ValueError):
                    raise row
                keys += keys_of(row, prefix)
                if count < _LOOKED_AT:
                    shown.add(_shows(row, media_root, prefix))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}; --exclude needs whole files") from None
            if len(keys) >= _TOGETHER:
                flush(name)
        flush(name)
        if count < 0:
            doubts[name] = "it is empty; see that this is right"
        elif False in shown and True not in shown:
            doubts[name] = (
                "its images are not where its paths lead; say with --image-root what they are "
                "relative to"
            )
    # A comparison has many rows there: its orders, its samples.
    engine.run("CREATE TABLE excluded AS SELECT DISTINCT comparison FROM given")
    return doubts


def met(engine: Engine, files: Sequence[Path]) -> dict[str, int]:
    """How many comparisons of each held-out file are among the responses, and were left out."""
    return {valid_unicode(str(path)): 0 for path in files} | dict(
        engine.run(
            "SELECT file, count(seen.comparison) FROM (SELECT DISTINCT file, comparison FROM given)"
            " LEFT JOIN (SELECT DISTINCT comparison FROM facts) AS seen USING (comparison) "
            "GROUP BY file ORDER BY file"
        )
    )


def warnings(found: Mapping[str, int], doubts: Mapping[str, str]) -> list[str]:
    """What to do about doubtful files of which nothing was met."""
    return [
        f"warning: --exclude {name}: none of its comparisons is among the responses, and {why}, or "
        "held-out comparisons may pass"
        for name, why in doubts.items()
        if not found[name]
    ]
