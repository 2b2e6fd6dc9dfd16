"""From cold-start rows to a template file: read, take the wording of `wording`, describe, write."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError, nearest
from cot_reward.records import PLACEHOLDERS, Task
from cot_reward.rows.reading import read_rows
from cot_reward.rows.wording import (
    MAX_DEVIATING_SHARE,
    Wording,
    marker_heads,
    shared_prefix,
    shared_suffix,
    shared_wording,
    wording_around,
)
from cot_reward.store import write_text_file
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER
from cot_reward.tasks.prompts import IMAGE, check_template, fill, template_hash

# What a task shows, for messages.
_SHOWN = {
    "image_generation": "two images",
    "video_generation": "as many frames of one video as of the other",
    "image_editing": "the source and two edits",
}
_MAX_LISTED_ROWS = 10


@dataclass(frozen=True)
class Derived:
    """A template, and what was found on the way to it.

    text: the template as the client reads it
    front: the placeholders that are left out of it, because the client puts them in front; or ""
    wording: what the prompts share, placeholders included
    rows: how many were read
    captions: of the rows that have the wording, in their order
    deviating: (file:row, why) of all other rows
    """

    text: str
    front: str
    wording: Wording
    rows: int
    captions: list[str]
    deviating: list[tuple[str, str]]


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: str
    # The caption, where the row names it; it occurs in the prompt.
    caption: str | None


def derive(files: Sequence[Path], task_name: str = "image_generation") -> Derived:
    """The template that the rows of the files share; at most 1% of them may deviate from it.

    A prompt is the first human turn of `conversations`, else `problem` or `prompt`. Where `prompt`
    is a text within it, that is the caption. Otherwise the caption begins after the last
    "Text Caption:", with its white space and a bracket or quotation mark that all prompts have.
    Without this marker it begins after the last line break, colon or opening bracket of the text
    that most prompts begin with. It ends at the closing bracket, at a line break or at a sentence
    that all prompts have. Each row that has the wording gives its prompt again when its caption is
    filled in.

    Raises UserError for files that cannot be read, unknown tasks and tasks of several fields,
    fewer than two different prompts, prompts in which no caption or no wording is found, a wording
    that a template file cannot hold, and when more than 1% of the rows deviate.
    """
    task = _task(task_name)
    where = ", ".join(map(str, files))
    read = list(_read(files))
    rows = [row for row in read if isinstance(row, _Row)]
    captions = {row.prompt: row.caption for row in rows}
    if len(captions) < 2:
        broken = [row for row in read if not isinstance(row, _Row)]
        raise UserError(
            f"{where}: {len(read)} rows with {len(captions)} different prompts; wording and "
            "caption can be told apart only in two or more, so give more rows"
            + (f"; rows without a usable prompt:{_listed(broken)}" if broken else "")
        )
    named = wording_around(captions)
    wording = named or shared_wording([row.prompt for row in rows])
    if wording is None:
        first, second = list(captions)[:2]
        raise UserError(
            f"{where}: nothing shows where the caption begins: no '{CAPTION_MARKER}', line break, "
            f"colon or bracket in what the prompts share; the first two are {_short(first)} and "
            f"{_short(second)}; write the template by hand, or name each row's caption in its "
            "'prompt'"
        )

    common, deviating = _sorted(read, wording, named is not None)
    if _too_many(deviating, read):
        raise UserError(
            f"{where}: {_count(deviating, len(read))}, more than {MAX_DEVIATING_SHARE:.0%}, so "
            "nothing is written; mend them, take them out, or derive a template for each wording:"
            + _listed(deviating)
        )
    marked = [row.prompt for row, caption in common if CAPTION_MARKER in caption]
    if CAPTION_MARKER not in wording.prefix + wording.suffix and _too_many(marked, read):
        _check_heads(marked, rows, where)
    _check_wording(wording, task, where)
    front, text = _template(wording, task, where)
    for row, caption in common:
        if front + fill(text, {task.text_field: caption}) != row.prompt:
            raise UserError(
                f"{row.where}: the template with the caption {_short(caption)} is not this row's "
                "prompt; write the template by hand"
            )
    return Derived(text, front, wording, len(read), [caption for _, caption in common], deviating)


def describe(found: Derived, task: Task) -> str:
    """What was found, for people: some lines without a line break at the end."""
    captions = list(dict.fromkeys(found.captions))
    lines = [
        f"{found.rows:,} rows, {len(found.captions):,} of them with one wording in common; "
        f"{len(captions):,} different captions"
    ]
    if found.deviating:
        lines.append(_count(found.deviating, found.rows) + ":" + _listed(found.deviating))
    if found.front:
        lines.append(f"{found.front} left out: the client puts them in front")
    elif IMAGE in found.text:
        lines.append(f"{IMAGE} kept where they stand in the prompts")
    else:
        lines.append(f"warning: no {IMAGE} in the prompts; the client shows them first")
    before, _, after = found.text.partition(_field(task))
    place = f"before {after[:40]!r}" if after else "at the end"
    lines.append(f"caption: after {before[-40:]!r}, {place}")
    lines.append(f"  the first: {_short(captions[0])}")
    if others := captions[1:]:
        lines.append(f"  the longest other: {_short(max(others, key=len))}")
        count = len(captions)
        lines += [
            f"  all {verb} with {_short(shared)}; if that is wording, move it out of the field"
            for verb, shared in (
                ("begin", shared_prefix(captions, count)),
                ("end", shared_suffix(captions, count)),
            )
            if shared
        ]
    lines.append(f"template: {len(found.text):,} characters, hash {template_hash(found.text)}")
    return "\n".join(lines)


def write_template(files: Sequence[Path], task_name: str, out: str) -> int:
    """Derive, describe and write the template; returns the exit code. Raises UserError.

    With `out` "-" the template goes to stdout and the rest to stderr.
    """
    found = derive(files, task_name)
    print(describe(found, TASKS[task_name]), file=sys.stderr if out == "-" else sys.stdout)
    if out == "-":
        print(found.text)
    else:
        write_text_file(Path(out), found.text + "\n")
        print(f"{out}: written; give it to the client with --template {out}")
    return 0


# --- rows -----------------------------------------------------------------------------------------


def _task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"--task: no task is called '{name}'.{nearest(name, TASKS)}")
    task = TASKS[name]
    if not task.compares_media:
        raise UserError(
            f"--task {name}: it has the fields {', '.join(task.fields)}, and only templates "
            "with one field can be derived; write this one by hand"
        )
    return task


def _read(files: Sequence[Path]) -> Iterator[_Row | tuple[str, str]]:
    """The rows; (file:row, why) in place of a row without a usable prompt."""
    for path in files:
        for number, row in read_rows(path):
            where = f"{path}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                yield _row(where, row)
            except ValueError as error:
                yield where, str(error)


def _row(where: str, row: dict[str, Any]) -> _Row:
    """Raises ValueError for a row without a prompt, or with more or fewer media than it shows."""
    prompt, texts = _texts(row)
    media = row.get("images")
    shown = sum(text.count(IMAGE) for text in texts)
    if isinstance(media, list) and len(media) != shown:
        raise ValueError(f"{shown} {IMAGE} in the texts, but {len(media)} in 'images'")
    caption = row.get("prompt")
    caption = caption.strip() if isinstance(caption, str) else ""
    return _Row(where, prompt, caption if caption != prompt and caption in prompt else None)


def _field(task: Task) -> str:
    """What stands for the caption in a template."""
    return "{" + task.text_field + "}"


def _texts(row: dict[str, Any]) -> tuple[str, list[str]]:
    """The prompt of a row, and all texts in which placeholders may stand. Raises ValueError."""
    conversation = row.get("conversations")
    if conversation is None:
        strings = [row[name] for name in ("problem", "prompt") if isinstance(row.get(name), str)]
        if not strings:
            keys = ", ".join(map(repr, row)) or "no key"
            raise ValueError(
                f"no 'conversations', and no string in 'problem' or 'prompt', among {keys:.200}"
            )
        return strings[0], strings[:1]
    turns = conversation if isinstance(conversation, list) else []
    turns = [turn for turn in turns if isinstance(turn, dict)]
    humans = [turn.get("value") for turn in turns if turn.get("from") == "human"]
    if not humans or not isinstance(humans[0], str):
        raise ValueError("no human turn with a text in 'conversations'")
    return humans[0], [turn["value"] for turn in turns if isinstance(turn.get("value"), str)]


def _sorted(
    read: Sequence[_Row | tuple[str, str]], wording: Wording, named: bool
) -> tuple[list[tuple[_Row, str]], list[tuple[str, str]]]:
    """The rows that have the wording, each with its caption, and (file:row, why) of the others.

    `named`: the wording was found by the captions that rows name, so theirs must be in its place.
    """
    common, deviating = [], []
    for row in read:
        if not isinstance(row, _Row):
            deviating.append(row)
        elif (caption := wording.caption_in(row.prompt)) is None:
            deviating.append((row.where, wording.difference(row.prompt)))
        elif named and row.caption and caption.strip() != row.caption:
            why = f"{_short(caption)} is in the caption's place, and 'prompt' is "
            deviating.append((row.where, why + _short(row.caption)))
        else:
            common.append((row, caption))
    return common, deviating


# --- template -------------------------------------------------------------------------------------


def _check_heads(marked: Sequence[str], rows: Sequence[_Row], where: str) -> None:
    """Raises UserError when several texts lead to the marker, or one text in some rows only."""
    heads = [Wording(head, "") for head, _ in marker_heads(marked)]
    others = [row for row in rows if not row.prompt.startswith(heads[0].prefix)]
    if others or len(heads) > 1:
        raise UserError(
            f"{where}: texts that lead to '{CAPTION_MARKER}': {len(heads)}, and none of them in "
            "most rows; derive a template for each wording, from its own rows"
            + "".join(
                ":" + _listed([(row.where, heads[0].difference(row.prompt))]) for row in others[:1]
            )
        )


def _check_wording(wording: Wording, task: Task, where: str) -> None:
    """Raises UserError for a wording that is not about the task, or that no template can hold."""
    text = wording.prefix + wording.suffix
    if (video := PLACEHOLDERS["videos"]) in text:
        raise UserError(
            f"{where}: the prompts show {video}, and the client shows a video as its frames, which "
            f"are images ({IMAGE}); train stage 1 on frames (scripts/prepare_data.py convert)"
        )
    count = text.count(IMAGE)
    fits = count in (0, 3 if task.has_context else 2)
    if not (fits or (task.medium == "video" and not count % 2)):
        raise UserError(
            f"{where}: the prompts share {count} {IMAGE}, and task {task.name} shows "
            f"{_SHOWN[task.name]}; give the rows of that task only"
        )
    if not re.search(r"\w", text.replace(IMAGE, "")):
        raise UserError(
            f"{where}: the prompts have nothing in common but {text.strip()[:80]!r}; is this "
            "cold-start data? If it is, write the template by hand"
        )
    if (field := _field(task)) in text:
        raise UserError(
            f"{where}: the wording itself holds {field}, and a template cannot tell it from the "
            "field; change the wording in the rows before stage 1 trains on them"
        )


def _template(wording: Wording, task: Task, where: str) -> tuple[str, str]:
    """The placeholders that the client puts in front, and the template. Raises UserError."""
    front = IMAGE * (wording.prefix + wording.suffix).count(IMAGE)
    rest = wording.prefix.removeprefix(front)
    if not wording.prefix.startswith(front) or not rest or rest[0].isspace():
        front = ""
    template = wording.prefix.removeprefix(front) + _field(task) + wording.suffix
    if template != _as_client_reads(template + "\n"):
        what = "carriage returns" if "\r" in template else "line breaks at their end"
        raise UserError(
            f"{where}: the prompts share {what}, which the client does not keep when it reads a "
            "template; take them out of the rows before stage 1 trains on them"
        )
    check_template(template, task)
    return front, template


def _as_client_reads(text: str) -> str:
    """The template that the client finds in a file of this text."""
    return io.StringIO(text, newline=None).read().rstrip("\n")


# --- messages -------------------------------------------------------------------------------------


def _too_many(deviating: Sequence[object], rows: Sequence[object]) -> bool:
    return len(deviating) > MAX_DEVIATING_SHARE * len(rows)


def _short(text: str) -> str:
    """The text in quotes, in one line of at most some 120 characters."""
    return repr(text if len(text) <= 110 else f"{text[:50]} ... {text[-50:]}")


def _count(deviating: list[tuple[str, str]], rows: int) -> str:
    return f"{len(deviating):,} of {rows:,} rows ({len(deviating) / rows:.2%}) deviate"


def _listed(deviating: list[tuple[str, str]]) -> str:
    """The first rows, each on a line of its own with a line break before it."""
    lines = "".join(f"\n  {where}: {why}" for where, why in deviating[:_MAX_LISTED_ROWS])
    more = len(deviating) - _MAX_LISTED_ROWS
    return lines + (f"\n  and {more:,} more" if more > 0 else "")
