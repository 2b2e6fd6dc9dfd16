"""A row of a judged response, ours or published -> what pairing needs of it, judged anew."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from cot_reward.judge import judge
from cot_reward.media.paths import media_path
from cot_reward.records import (
    ORDERS,
    PLACEHOLDERS,
    ROW_FIELDS,
    Comparison,
    as_tuple,
    placeholder_in,
    turns,
)
from cot_reward.rows.shards import Shard
from cot_reward.rows.validation import (
    RowError,
    check_compared_media,
    check_completion,
    check_label,
    check_order,
    check_prompt,
    check_task,
    check_type,
    form_of,
    has_own_fields,
    is_key,
)
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import caption_in

# What a row of ours always has, and one from elsewhere may lack. No label: its file tells.
_ABSENT: dict[str, Any] = {
    "id": "", "task": "", "source": "", "order": "", "sample": -1, "label": 0,
    "finish_reason": "", "model": "", "template_hash": "", "images": [], "videos": [], "form": "",
}  # fmt: skip
_ANY_PLACEHOLDER = re.compile("|".join(PLACEHOLDERS.values()))
# What may be in a path that is not normal: an empty one, or parts like "", "." and "..".
_UNCLEAN = re.compile(r"\A\Z|\A[/.]|/[/.]|/\Z|\0")
# Of rows of others, too, these must be what they seem.
_DECISIVE = ("label", "finish_reason", "images", "videos")
_KINDS = {name: ROW_FIELDS[name] for name in _ABSENT}


# A prompt -> its caption; raises ValueError.
FindCaption = Callable[[str], str]


class Judged(NamedTuple):
    """One response. `presentation` stands for what a pair must share within a comparison: the media
    in their order, since the texts speak of "Image 1"; where the candidates are texts, the prompt.

    `preferred` stands for the candidate that the row's label prefers, where candidates are media;
    where they are texts, it is the place where it was shown; 0 when the row does not tell.
    `comparison` stands for `id`: joins over short numbers take a fifth of the memory. `media` is
    JSON, images and videos. `response` is equal for two records of one sample. `asked` stands for
    the wording of the prompt, whatever its white space and the place of its media.
    """

    id: str
    comparison: int
    presentation: int
    preferred: int
    response: int
    task: str
    form: str
    source: str
    order: str
    model: str
    template_hash: str
    prompt: str
    text: str
    media: str
    answer: int
    verdict: str
    coherence: str
    asked: int


def digest(*parts: object) -> int:
    """64 bits, with a sign as the engine has it, that stand for the parts."""
    text = "\0".join(map(str, parts)).encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def pictures_digest(paths: Iterable[str]) -> int:
    """64 bits that stand for these media, in whatever order they are shown."""
    return digest("pictures", *sorted(paths))


def text_of(value: Any) -> str:
    """The text of a string, of a message ({"value"} or {"content"}), or of the last of several.

    Raises ValueError for what is none of these.
    """
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = value.get("value", value.get("content"))
        if isinstance(value, list):
            value = "".join(
                part["text"]
                for part in value
                if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            )
    if not isinstance(value, str):
        raise ValueError(f"no text: {value!r:.60}")
    return value


def prompt_and_text(row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and completion of a row with `conversations`, or with `problem` and `solution`.

    Raises ValueError for a row with neither.
    """
    if row.get("conversations") is not None:
        return turns(row)
    prompt, text = row.get("problem"), row.get("solution")
    if not isinstance(prompt, str) or not isinstance(text, str):
        raise ValueError(
            "no prompt and completion: needs 'conversations', or 'problem' and 'solution'"
        )
    return prompt, text


def published(
    row: Mapping[str, Any], prompt: str, prefix: str, find_caption: FindCaption = caption_in
) -> Comparison:
    """The comparison of a row without a key: the media and the caption in its prompt.

    The media are two images, two videos, or the frames of two videos, which the prompt then calls
    "Video 1" and "Video 2". The label is left at 1. Raises ValueError when the row does not tell
    what is compared.
    """
    images, videos = row.get("images") or [], row.get("videos") or []
    media = videos or images
    are_frames = not videos and "Video 1" in prompt and "Image 1" not in prompt
    if (images and videos) or not isinstance(media, list) or (len(media) != 2 and not are_frames):
        raise ValueError("the row names no two media of one kind, and has no key as 'id'")
    task = "video_generation" if videos or are_frames else "image_generation"
    # A word of another's means nothing here.
    if (named := row.get("task")) != task and isinstance(named, str) and named in TASKS:
        raise ValueError(f"rows of task {named!r} need the key as 'id'")
    _, candidates = TASKS[task].parts([media_path(path, prefix) for path in media])
    assert candidates
    return Comparison(task, find_caption(prompt), candidates, 1)


def _clean(paths: list[Any]) -> list[str]:
    """Paths as `media_path` gives them; most need nothing, and that is seen at once."""
    for path in paths:
        if not isinstance(path, str) or _UNCLEAN.search(path):
            return [media_path(path, "") for path in paths]
    return paths


def _is_ours(row: Mapping[str, Any], prompt: str, prefix: str) -> bool:
    """Whether the row's `id` is its key; rows of others may have a digest of their own there."""
    if not is_key(row.get("id")) or has_own_fields(row):
        return is_key(row.get("id"))
    with suppress(ValueError):
        return row["id"] in {published(row, prompt, root).key for root in (prefix, "")}
    return True


def _fields(row: Mapping[str, Any], ours: bool) -> dict[str, Any]:
    """The fields that a row may lack, of the right type.

    Rows of others may have nulls there, and fields of their own by these names: but for what a pair
    depends on they count as absent.
    """
    values: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = row.get(name, _ABSENT[name])
        if value is None and not ours:
            value = _ABSENT[name]
        if name == "label" and type(value) is float:
            # A column with gaps, which are NaN.
            value = int(value) if value.is_integer() else value
            value = _ABSENT[name] if value != value and not ours else value
        if type(value) is not kind and not ours and name not in _DECISIVE:
            value = _ABSENT[name]
        check_type(name, value, kind)
        values[name] = value
    return values


def read(
    row: Mapping[str, Any],
    right_side: bool,
    prefix: str,
    find_caption: FindCaption = caption_in,
    shard: Shard | None = None,
) -> Judged | None:
    """The row, judged again: what it says of its own verdict counts for nothing.

    None for a row of another share than `shard`, of which no more is looked at than tells its key.

    A row without a label is taken to be as right or wrong as the file that it stands in says.
    `prefix` leads from the media root to what paths in rows without a key are relative to,
    `find_caption` finds the caption in a prompt of such a row. Raises ValueError for a row that
    cannot be used.
    """
    prompt, text = prompt_and_text(row)
    ours = _is_ours(row, prompt, prefix)
    values = _fields(row, ours)
    images, videos = values["images"], values["videos"]
    if ours:
        key = values["id"]
        if shard and not shard.holds(key):
            return None
        task = values["task"] or ("video_generation" if videos else "image_generation")
        check_task(task)
        images, videos = _clean(images), _clean(videos)
    else:
        comparison = published(row, prompt, prefix, find_caption)
        key, task = comparison.key, comparison.task
        if shard and not shard.holds(key):
            return None
        shown = [path for one in comparison.candidates for path in as_tuple(one)]
        token = PLACEHOLDERS["videos" if videos else "images"]
        images, videos = ([], shown) if videos else (shown, [])
        if not placeholder_in(prompt):
            # In front, as where a template has none.
            prompt = token * len(shown) + prompt
    compared = TASKS[task].compares_media
    _, candidates = check_compared_media(images, videos, TASKS[task])
    check_prompt(prompt, images, videos)
    order, label = values["order"], values["label"]
    if label or row.get("label") == 0:
        check_label(label)
    if ours and order:
        check_order(order)
    elif order not in ORDERS:
        order = ""

    form = form_of(values) if ours else "think"
    found = judge(text, TASKS[task], label or 1, values["finish_reason"], form, mismatches=False)
    verdict = found.verdict
    if not label and found.answer:
        label = found.answer if right_side else 3 - found.answer
        verdict = "correct" if right_side else "incorrect"
    preferred = 0
    if label:
        preferred = digest(candidates[label - 1]) if candidates else label
    # Texts of two forms make no pair. (Chains of thought keep the number that they always had.)
    of_form = () if form == "think" else (form,)
    place = digest(key, task, images, videos, "" if compared else prompt, *of_form)
    return Judged(
        id=key, comparison=digest(key), presentation=place, preferred=preferred,
        response=digest(place, values["model"], values["sample"], text),
        task=task, form=form, source=values["source"], order=order, model=values["model"],
        template_hash=values["template_hash"], prompt=prompt, text=text,
        media=orjson.dumps([images, videos]).decode(),
        answer=found.answer, verdict=verdict, coherence=found.coherence,
        asked=digest("asked", *_ANY_PLACEHOLDER.sub(" ", prompt).split()),
    )  # fmt: skip


def is_unfit(text: str) -> bool:
    """Whether a trainer would refuse the text as a completion."""
    try:
        check_completion(text)
    except RowError:
        return True
    return False
