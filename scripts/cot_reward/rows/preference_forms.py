"""This project's DPO rows in the forms of LLaMA-Factory, TRL and ms-swift, and as TRL's prompt."""

from collections.abc import Mapping
from typing import Any, Literal

from cot_reward.records import PLACEHOLDERS

# The forms that the merger writes.
WrittenForm = Literal["ours", "trl", "llamafactory", "swift"]
_CONTENTS = ("problem", "chosen", "rejected", "images", "videos", "system")


def in_form(pair: Mapping[str, Any], form: WrittenForm) -> dict[str, Any]:
    """A DPO row of ours in another form: its text columns, its media, then the rest as it is.

    trl: conversational, with image parts in the prompt. llamafactory: Alpaca ranking. swift:
    `messages` and `rejected_response`. Raises ValueError for a row about videos in TRL's form.
    """
    rest = {name: value for name, value in pair.items() if name not in _CONTENTS}
    return _WRITERS[form](pair) | rest


def prompt_messages(pair: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompt as messages: the question has an image part in place of each placeholder."""
    content: list[dict[str, str]] = []
    for number, text in enumerate(pair["problem"].split(PLACEHOLDERS["images"])):
        if number:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system := pair.get("system"):
        # A list, too: in Arrow all contents have one type.
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def _ours(pair: Mapping[str, Any]) -> dict[str, Any]:
    return dict(pair)


def _trl(pair: Mapping[str, Any]) -> dict[str, Any]:
    if pair.get("videos"):
        raise ValueError("TRL trains on images only, and the pair is about videos")
    return {
        "prompt": prompt_messages(pair),
        **{side: [_message("assistant", pair[side])] for side in ("chosen", "rejected")},
        "images": pair["images"],
    }


def _llamafactory(pair: Mapping[str, Any]) -> dict[str, Any]:
    # LLaMA-Factory looks up every column that its register names, also an optional one.
    texts = {"instruction": pair["problem"], "input": ""}
    texts |= {side: pair[side] for side in ("chosen", "rejected")}
    return texts | _media(pair) | ({"system": pair["system"]} if pair.get("system") else {})


def _swift(pair: Mapping[str, Any]) -> dict[str, Any]:
    messages = [_message("user", pair["problem"]), _message("assistant", pair["chosen"])]
    if pair.get("system"):
        messages.insert(0, _message("system", pair["system"]))
    return {"messages": messages, "rejected_response": pair["rejected"]} | _media(pair)


def _media(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {name: pair[name] for name in PLACEHOLDERS if name in pair}


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


_WRITERS = {"ours": _ours, "trl": _trl, "llamafactory": _llamafactory, "swift": _swift}
