"""The one validator of rows: what a training row must be, for every program that reads one.

`check_rows.py`, the merger, the audit and stage 3 call the functions below, so that a row which one
of them refuses is refused by all, with the same sentence. Images are not opened here.

The merger reads rows of other projects, too. For fields that such a row has by chance under a name
of ours it is more tolerant (`rows.responses`); for prompts, media and texts it is not.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cot_reward.media.paths import path_fault
from cot_reward.records import (
    FORMS,
    ORDERS,
    PAIR_FIELDS,
    PLACEHOLDERS,
    ROW_FIELDS,
    Form,
    Parts,
    Task,
    token_fault,
    turns,
)
from cot_reward.tasks import TASKS

Reason = Literal["malformed", "fields", "placeholders", "address", "escapes", "held_out"]

_PAIR_NEEDS = ("problem", "chosen", "rejected", "images")
# Fields that this project writes beside `id`, and others do not.
_OWN_FIELDS = ("task", "order", "sample", "label", "verdict", "coherence", "template_hash")


class RowError(ValueError):
    """A row that cannot be used. The message says why, `reason` in a word."""

    def __init__(self, message: str, reason: Reason = "fields") -> None:
        super().__init__(message)
        self.reason = reason


def is_key(value: object) -> bool:
    """Whether a value is a key as `records.comparison_key` makes them."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def has_own_fields(row: Mapping[str, Any]) -> bool:
    """Whether the row has a field beside `id` that this project writes and others do not."""
    return any(row.get(name) is not None for name in _OWN_FIELDS)


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise RowError unless the value of a field has exactly this type (a boolean is no int)."""
    if type(value) is not kind:
        raise RowError(f"'{name}' must be of type {kind.__name__}, not {reprlib.repr(value)}")


def check_types(row: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raise RowError when a field that is there has another type.

    A null has one, too: `datasets` takes the type of a column from its first rows.
    """
    for name, kind in kinds.items():
        if name in row:
            check_type(name, row[name], kind)


def check_prompt(
    prompt: str, images: Sequence[str], videos: Sequence[str], needs_text: bool = True
) -> None:
    """Raise RowError unless the prompt has one placeholder for each medium, and a text beside them.

    `needs_text` False: a prompt of placeholders alone will do.
    """
    text = prompt
    for name, paths in (("images", images), ("videos", videos)):
        token = PLACEHOLDERS[name]
        if (count := prompt.count(token)) != len(paths):
            raise RowError(
                f"{count} {token} in the prompt, but {len(paths)} in '{name}'; "
                "each medium needs one placeholder",
                "placeholders",
            )
        text = text.replace(token, "")
    if not (text if needs_text else prompt).strip():
        raise RowError("the prompt is empty")
    if fault := token_fault(text):
        raise RowError(f"the prompt {fault}", "placeholders")


def check_completion(text: str, name: str = "the completion") -> None:
    """Raise RowError for a text that is empty, or holds a special token."""
    if not text.strip():
        raise RowError(f"{name} is empty")
    if fault := token_fault(text):
        raise RowError(f"{name} {fault}", "placeholders")


def check_compared_media(images: Sequence[str], videos: Sequence[str], task: Task) -> Parts:
    """The parts of the media (`Task.parts`). Raises RowError unless they are of one comparison."""
    media = images or videos
    if (images and videos) or len(media) < (2 if task.compares_media else 1):
        raise RowError(
            "the row names fewer than two media of one kind"
            if task.compares_media
            else "the row names no medium, or media of two kinds"
        )
    try:
        parts = task.parts(media)
    except ValueError as error:
        raise RowError(str(error)) from None
    _, candidates = parts
    if candidates and candidates[0] == candidates[1]:
        raise RowError(f"both media are the same: {reprlib.repr(candidates[1])}")
    return parts


def check_label(label: Any) -> None:
    """Raise RowError unless the label is 1 or 2."""
    if label not in (1, 2):
        # Where 0 is the first candidate, a 1 in the same file is the second one.
        hint = "; if labels count from 0 here, add 1 to each of the file" if label == 0 else ""
        raise RowError(f"'label' must be 1 or 2, not {reprlib.repr(label)}{hint}")


def check_order(order: Any) -> None:
    """Raise RowError unless the order is one of `records.ORDERS`."""
    if order not in ORDERS:
        raise RowError(f"'order' must be given or swapped, not {reprlib.repr(order)}")


def form_of(row: Mapping[str, Any]) -> Form:
    """The form of a row's texts; a row that names none has chains of thought. Raises RowError.

    Rows of others may have a field of this name.
    """
    named = (row.get("form") if has_own_fields(row) else None) or "think"
    if named not in FORMS:
        raise RowError(f"unknown form {reprlib.repr(named)}; known: {', '.join(FORMS)}")
    form: Form = named
    return form


def check_task(task: str) -> None:
    """Raise RowError for a task that is not known."""
    if task not in TASKS:
        raise RowError(f"unknown task {reprlib.repr(task)}")


def _media(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """The paths of a row's media, by column. Raises RowError for what is no relative path."""
    media = {name: row.get(name, []) for name in PLACEHOLDERS}
    for name, paths in media.items():
        for path in paths:
            if not isinstance(path, str) or not path:
                raise RowError(f"a media path must be a string, not {reprlib.repr(path)}")
            if fault := path_fault(path):
                raise RowError(f"a path in '{name}' is {fault}", "address")
            if path.startswith("/"):
                raise RowError(
                    f"a path in '{name}' is absolute; paths are relative to the media root "
                    "(--media-root; of stage 3: --image_folder): take this folder off its front",
                    "escapes",
                )
    return media


def check_row(row: Any) -> dict[str, list[str]]:
    """The media paths of an SFT row, a judged row or a DPO row, under "images" and "videos".

    Raises RowError for a row that cannot be trained on.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"a row must be an object, not {type(row).__name__}")
    if "conversations" in row:
        return check_sft_row(row)
    if not any(name in row for name in ("problem", "chosen", "rejected")):
        raise RowError(
            "needs 'conversations' (SFT), or 'problem', 'chosen' and 'rejected' (DPO; the forms of "
            "LLaMA-Factory, TRL and ms-swift are read, too); it has "
            + (", ".join(map(repr, row)) or "no key")
        )
    return check_pair_row(row)


def check_sft_row(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """The media paths of a row with `conversations`. Raises RowError.

    A judged row (a key as `id`, and this project's fields) must be about one comparison, too, as
    the merger needs it.
    """
    try:
        prompt, completion = turns(row)
    except ValueError as error:
        raise RowError(str(error)) from None
    check_types(row, ROW_FIELDS)
    media = _media(row)
    images, videos = media["images"], media["videos"]
    is_judged = is_key(row.get("id")) and has_own_fields(row)
    if is_judged:
        task = row.get("task") or ("video_generation" if videos else "image_generation")
        check_task(task)
        check_compared_media(images, videos, TASKS[task])
    check_prompt(prompt, images, videos, needs_text=is_judged)
    if is_judged:
        if "label" in row:
            check_label(row["label"])
        if row.get("order"):
            check_order(row["order"])
        form_of(row)
    check_completion(completion)
    return media


def check_pair_row(row: Mapping[str, Any], for_training: bool = True) -> dict[str, list[str]]:
    """The media paths of a DPO row of ours, as `rows.preferences` gives every one. Raises RowError.

    `for_training` False: what stage 3 cannot train on is a pair, too: videos, texts alone (a row
    without a column of media), a question that follows other turns.
    """
    for name in _PAIR_NEEDS:
        if name not in row and (for_training or name != "images"):
            raise RowError(f"has no '{name}'")
    check_types(row, PAIR_FIELDS)
    form_of(row)
    media = _media(row)
    prompt, history = row["problem"], row.get("history") or []
    check_type("history", history, list)
    if for_training and history:
        raise RowError(
            f"its prompt has {len(history)} turns before the last question; stage 3 trains on one "
            "question (and a system prompt)"
        )
    if for_training and (media["videos"] or PLACEHOLDERS["videos"] in prompt):
        raise RowError("has videos; stage 3 trains on images only")
    if any(name in row for name in PLACEHOLDERS):
        tokens = "".join(t for t in PLACEHOLDERS.values() for _ in range(str(history).count(t)))
        check_prompt(tokens + prompt, media["images"], media["videos"])
        if not (media["images"] or media["videos"]):
            raise RowError("has no images")
    elif not prompt.strip():
        raise RowError("the prompt is empty")
    if row.get("system") is not None:
        check_type("system", row["system"], str)
        if fault := token_fault(row["system"]):
            raise RowError(f"the system prompt {fault}", "placeholders")
    for side in ("chosen", "rejected"):
        check_completion(row[side], f"'{side}'")
    if row["chosen"] == row["rejected"]:
        raise RowError("'chosen' and 'rejected' are the same text")
    return media
