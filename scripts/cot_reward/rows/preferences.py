"""Preference rows of LLaMA-Factory, TRL and ms-swift -> this project's DPO rows, at reading.

`check_rows.py`, the audit and stage 3 read every file of pairs by `PairReader`, and then check the
row by `rows.validation`. What a row of ours has no field for is an error, and is not left out: the
model would be shown something else than the row's author meant.
"""

import reprlib
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple

from cot_reward.records import PAIR_FIELDS, PLACEHOLDERS, placeholder_in
from cot_reward.rows.validation import RowError, check_type, is_key

PairForm = Literal["ours", "alpaca", "sharegpt", "trl", "swift"]

_NAMES: dict[PairForm, str] = {
    "ours": "this project's form ('problem')",
    "alpaca": "LLaMA-Factory's Alpaca form ('instruction')",
    "sharegpt": "LLaMA-Factory's ShareGPT form ('conversations' or 'messages', 'chosen')",
    "trl": "TRL's form ('prompt', or 'chosen' and 'rejected' alone)",
    "swift": "ms-swift's form ('messages', 'rejected_response')",
}
# Where a prompt may stand.
_PROMPTS = ("problem", "prompt", "instruction", "conversations", "messages")
_NO_PROMPT = "has no prompt: needs one of " + ", ".join(map(repr, _PROMPTS))
_SWIFT_ANSWERS = ("rejected_response", "rejected_messages")
_ANSWERS = ("chosen", "rejected", *_SWIFT_ANSWERS)
# Further columns that change what a model is shown.
_UNREAD = ("tools", "audios", "audio", "objects", "chat_template_kwargs")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
# The keys of a content part that may hold the medium itself.
_MEDIUM_KEYS = ("path", "url", "image", "video", "image_url", "video_url")
_CONTENTS = ("problem", "chosen", "rejected", *PLACEHOLDERS)
# What rows of others keep: these fields mean the same everywhere.
_KEPT = (
    "chosen_model", "rejected_model", "chosen_finish_reason", "rejected_finish_reason",
)  # fmt: skip


class _Turn(NamedTuple):
    """A message. `is_string` tells that its content was no list of parts."""

    role: str
    text: str
    is_string: bool


class _Prompt(NamedTuple):
    system: str
    earlier: Sequence[_Turn]
    question: _Turn


class PairReader:
    """Reads the preference rows of one file, which must all have one form: call it with each."""

    def __init__(self) -> None:
        self._form: PairForm | None = None
        self._first = 0

    def __call__(self, number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row, which is the file's record of this number, as a DPO row of this project.

        A row of ours comes back as it is, unchecked. A system prompt is in `system`, and the
        messages before the last question are in `history`; both are left out where there are none.
        `images` and `videos` are left out where the row has no column of media. Raises RowError.
        """
        form = _form(row)
        if self._form is None:
            self._form, self._first = form, number
        if form != self._form:
            raise RowError(
                f"is in {_NAMES[form]}, and record {self._first} of its file is in "
                f"{_NAMES[self._form]}; put the rows of each form into a file of their own"
            )
        return row if form == "ours" else _as_ours(row, form)


def is_preference(row: object) -> bool:
    """Whether a row is a pair of answers, in whatever form."""
    return isinstance(row, Mapping) and any(row.get(name) is not None for name in _ANSWERS)


def _has(row: Mapping[str, Any], name: str) -> bool:
    return row.get(name) not in (None, "", [], {})


def _form(row: Mapping[str, Any]) -> PairForm:
    prompts = [name for name in _PROMPTS if _has(row, name)]
    if _has(row, "input") and "instruction" not in prompts:
        prompts.append("instruction")
    if "messages" in prompts and row["messages"] == row.get("chosen"):
        # Published data sets repeat the chosen conversation there.
        prompts.remove("messages")
    answers = [name for name in _ANSWERS if row.get(name) is not None]
    of_swift = [name for name in answers if name in _SWIFT_ANSWERS]
    for found, what in ((prompts, "prompt"), (of_swift, "rejected answer")):
        if len(found) > 1:
            raise RowError(
                f"its {what} may be {' or '.join(map(repr, found))}; take the column out that "
                "does not belong to the pair"
            )
    if of_swift:
        if len(answers) > 1:
            raise RowError(
                f"has {' and '.join(map(repr, answers))}, which are of two forms; take out the "
                "columns that do not belong to the pair"
            )
        if prompts not in (["messages"], ["conversations"]):
            raise RowError(
                f"has '{of_swift[0]}', but no 'messages' that end with the chosen answer"
            )
        return "swift"
    forms: dict[str, PairForm] = {"problem": "ours", "prompt": "trl", "instruction": "alpaca"}
    if prompts:
        return forms.get(prompts[0], "sharegpt")
    # TRL's form may have the prompt in the answers. Of other rows the validator says what is wrong.
    has_lists = any(isinstance(row.get(side), list) for side in ("chosen", "rejected"))
    return "ours" if "problem" in row and not has_lists else "trl"


def _as_ours(row: Mapping[str, Any], form: PairForm) -> dict[str, Any]:
    for name in _UNREAD:
        if _has(row, name):
            raise RowError(
                f"has '{name}', which would change what the model is shown and is not read here; "
                "take the column out, or leave the row out"
            )
    for side in ("chosen", "rejected") if form != "swift" else ():
        if row.get(side) is None:
            raise RowError(f"has no '{side}'")
    # The media that stand in the messages themselves.
    inside: dict[str, list[Any]] = {name: [] for name in PLACEHOLDERS}
    prompt, texts = _READERS[form](row, inside)
    media = {name: _media(row, name, inside[name]) for name in PLACEHOLDERS}
    if form == "trl":
        prompt = _with_images_in_front(prompt, media["images"] or [])
    has_media = any(paths is not None for paths in media.values())
    system = _system(row, prompt.system)
    history = [{"role": turn.role, "content": turn.text} for turn in prompt.earlier]
    return {
        "problem": prompt.question.text,
        **texts,
        **({name: paths or [] for name, paths in media.items()} if has_media else {}),
        **({"system": system} if system else {}),
        **({"history": history} if history else {}),
        **_kept(row),
    }


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ours that the row has. Without a key of ours they may mean something else."""
    kinds: dict[str, type] = dict.fromkeys(_KEPT, str)
    if is_key(row.get("id")):
        kinds |= {name: kind for name, kind in PAIR_FIELDS.items() if name not in _CONTENTS}
    return {name: row[name] for name, kind in kinds.items() if type(row.get(name)) is kind}


# --- the forms ------------------------------------------------------------------------------------
Inside = dict[str, list[Any]]
Read = tuple[_Prompt, dict[str, str]]


def _alpaca(row: Mapping[str, Any], inside: Inside) -> Read:
    asked = {name: row[name] for name in ("instruction", "input") if _has(row, name)}
    for name, text in asked.items():
        check_type(name, text, str)
    earlier = []
    history = row.get("history") or []
    check_type("history", history, list)
    for turns in history:
        if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
            raise RowError(f"'history' must be pairs of texts, not {reprlib.repr(turns)}")
        for role, text in zip(cycle(("user", "assistant")), turns, strict=False):
            earlier.append(_Turn(role, text, is_string=True))
    # LLaMA-Factory joins them in this way.
    question = _Turn("user", "\n".join(asked.values()), is_string=True)
    return _Prompt("", earlier, question), _answers(row, inside)


def _sharegpt(row: Mapping[str, Any], inside: Inside) -> Read:
    name = "conversations" if _has(row, "conversations") else "messages"
    return _prompt(_turns(row[name], name, inside), f"'{name}'"), _answers(row, inside)


def _swift(row: Mapping[str, Any], inside: Inside) -> Read:
    name = "conversations" if _has(row, "conversations") else "messages"
    *asked, chosen = _turns(row[name], name, inside)
    if chosen.role != "assistant":
        raise RowError(
            f"'{name}' must end with the chosen answer (assistant), not role {chosen.role!r:.40}"
        )
    prompt = _prompt(asked, f"'{name}', before its answer,")
    value = row.get("rejected_response")
    if value is None:
        # A whole conversation, with media of its own.
        beside: Inside = {kind: [] for kind in PLACEHOLDERS}
        *asked_too, rejected = _turns(row["rejected_messages"], "rejected_messages", beside)
        if asked_too != asked or beside != inside or rejected.role != "assistant":
            raise RowError("'rejected_messages' must be 'messages' but for the last, the answer")
        value = {"role": "assistant", "content": rejected.text}
    for kind in PLACEHOLDERS:
        other = f"rejected_{kind}"
        if _has(row, other) and _media(row, other, []) != _media(row, kind, inside[kind]):
            raise RowError(f"'{other}' are others than '{kind}'; a pair is about the same media")
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        if len(value) > 1:
            raise RowError(f"'rejected_response' has {len(value)} answers; a pair has one")
        value = value[0]
    return prompt, {"chosen": chosen.text, "rejected": _answer(value, "rejected_response", inside)}


def _trl(row: Mapping[str, Any], inside: Inside) -> Read:
    asked = row.get("prompt")
    whole = [row.get(side) for side in ("chosen", "rejected")]
    are_whole = all(isinstance(turns, list) and len(turns) > 1 for turns in whole)
    if isinstance(asked, list) and asked:
        return _prompt(_turns(asked, "prompt", inside), "'prompt'"), _answers(row, inside)
    if not _has(row, "prompt") or (isinstance(asked, str) and are_whole):
        prompt, texts = _with_prompt_inside(row, inside)
        if _has(row, "prompt") and prompt.question.text.strip() != str(asked).strip():
            raise RowError("'prompt' is not the question in 'chosen' and 'rejected'; take it out")
        return prompt, texts
    if not isinstance(asked, str):
        raise RowError(f"'prompt' must be a text or messages, not {reprlib.repr(asked)}")
    # Into a text that is no message TRL puts no image.
    return _Prompt("", [], _Turn("user", asked, is_string=False)), _answers(row, inside)


def _with_prompt_inside(row: Mapping[str, Any], inside: Inside) -> Read:
    """The prompt is what both conversations begin with, as TRL takes it."""
    if not all(isinstance(row[side], list) for side in ("chosen", "rejected")):
        raise RowError(_NO_PROMPT)
    beside: Inside = {kind: [] for kind in PLACEHOLDERS}
    sides = {
        "chosen": _turns(row["chosen"], "chosen", inside),
        "rejected": _turns(row["rejected"], "rejected", beside),
    }
    asked = sides["chosen"][:-1]
    for side, turns in sides.items():
        if turns[:-1] != asked or turns[-1].role != "assistant":
            raise RowError(
                f"'chosen' and 'rejected' must begin alike and end with one answer: '{side}' does "
                f"not ({' '.join(turn.role for turn in turns):.80})"
            )
    if not asked:
        raise RowError(_NO_PROMPT)
    if beside != inside:
        raise RowError("'chosen' and 'rejected' show other media; a pair is about the same media")
    return _prompt(asked, "'chosen', before its answer,"), {
        side: turns[-1].text for side, turns in sides.items()
    }


_READERS = {"alpaca": _alpaca, "sharegpt": _sharegpt, "swift": _swift, "trl": _trl}


# --- messages -------------------------------------------------------------------------------------
def _turns(messages: Any, name: str, inside: Inside) -> list[_Turn]:
    """The messages of a column. Media that stand in them are added to `inside`."""
    check_type(name, messages, list)
    if not messages:
        raise RowError(f"'{name}' has no message")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RowError(f"a message in '{name}' is no object: {reprlib.repr(message)}")
        turns.append(_turn(message, name, inside))
    return turns


def _turn(message: Mapping[str, Any], name: str, inside: Inside) -> _Turn:
    # In Arrow each message has every key.
    role = next((message[key] for key in ("role", "from") if message.get(key) is not None), None)
    if not isinstance(role, str):
        raise RowError(f"a message in '{name}' has no 'role' (or 'from'): {reprlib.repr(message)}")
    content = message.get("content")
    if content is None:
        content = message.get("value")
    text = "" if content is None else _text(content, name, inside)
    return _Turn(_ROLES.get(role, role), text, isinstance(content, str))


def _text(content: Any, name: str, inside: Inside) -> str:
    """The text of a message's content, with a placeholder for each part that is a medium."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"a message in '{name}' has no text: {reprlib.repr(content)}")
    texts: list[str] = []
    media = 0
    for part in content:
        given = part if isinstance(part, Mapping) else {"text": part}
        kind = str(given.get("type") or "text").removesuffix("_url")
        if kind == "text" and isinstance(given.get("text"), str):
            texts.append(given["text"])
            continue
        column = f"{kind}s"
        if column not in PLACEHOLDERS:
            raise RowError(f"a part in '{name}' is no text, image or video: {reprlib.repr(part)}")
        media += 1
        texts.append(PLACEHOLDERS[column])
        found = next((given[key] for key in _MEDIUM_KEYS if given.get(key) is not None), None)
        if isinstance(found, Mapping):
            found = found.get("url", found.get("path"))
        if found is not None:
            inside[column].append(found)
    if media and media != sum(map(bool, map(placeholder_in, texts))):
        raise RowError(
            f"a text in '{name}' holds {placeholder_in(''.join(texts))} beside parts that are "
            "media; say where they stand in one way",
            "placeholders",
        )
    return "".join(texts)


def _prompt(turns: Sequence[_Turn], where: str) -> _Prompt:
    system = ""
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    if not turns or turns[-1].role != "user":
        last = turns[-1].role if turns else "system" if system else "none"
        raise RowError(f"{where} must end with a question (user), not with role {last!r:.40}")
    return _Prompt(system, turns[:-1], turns[-1])


def _answers(row: Mapping[str, Any], inside: Inside) -> dict[str, str]:
    return {side: _answer(row[side], side, inside) for side in ("chosen", "rejected")}


def _answer(value: Any, name: str, inside: Inside) -> str:
    """The text of a string, of an assistant's message, or of a list of one."""
    if isinstance(value, str):
        return value
    turns = _turns([value] if isinstance(value, Mapping) else value, name, inside)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(
            f"'{name}' must be one answer (assistant), and is {len(turns)} messages of roles "
            f"{' '.join(turn.role for turn in turns) or 'none':.80}"
        )
    return turns[0].text


def _system(row: Mapping[str, Any], of_messages: str) -> str:
    """The system prompt, from a column or the messages."""
    found = {"the messages": of_messages} if of_messages else {}
    for name in ("system", "system_prompt"):
        if _has(row, name):
            check_type(name, row[name], str)
            found[f"'{name}'"] = row[name]
    if len(set(found.values())) > 1:
        raise RowError(f"has several system prompts, in {' and '.join(found)}; keep one")
    return next(iter(found.values()), "")


# --- media ----------------------------------------------------------------------------------------
def _media(row: Mapping[str, Any], name: str, inside: list[Any]) -> list[Any] | None:
    """The paths of a column, or of the messages; None where the row says nothing of them."""
    single = name.removesuffix("s")
    columns = [column for column in (name, single) if _has(row, column)]
    if len(columns) + bool(inside) > 1:
        places = [*map(repr, columns), *(["the messages"] if inside else [])]
        raise RowError(f"has {name} in {' and in '.join(places)}; name each once")
    if not columns:
        return inside if inside or name in row or single in row else None
    value = row[columns[0]]
    return [_path(medium, name) for medium in (value if isinstance(value, list) else [value])]


def _path(medium: Any, name: str) -> Any:
    """The path of a medium: a string, or {"path": ..., "bytes": null} as `datasets` writes it."""
    if not isinstance(medium, Mapping):
        return medium
    if medium.get("bytes") is not None or not isinstance(medium.get("path"), str):
        raise RowError(
            f"'{name}' holds the media themselves, or no path; write each medium to a file, and "
            "its path into the row"
        )
    return medium["path"]


def _with_images_in_front(prompt: _Prompt, images: Sequence[Any]) -> _Prompt:
    """The prompt with the images before the first question, where no text says where they stand.

    TRL puts them there.
    """
    turns = [*prompt.earlier, prompt.question]
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    if not turns[first].is_string or any(placeholder_in(turn.text) for turn in turns):
        return prompt
    text = PLACEHOLDERS["images"] * len(images) + turns[first].text
    turns[first] = turns[first]._replace(text=text)
    return prompt._replace(earlier=turns[:-1], question=turns[-1])
