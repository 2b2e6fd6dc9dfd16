"""The records that flow from stage to stage: fields, keys, validation and JSON forms."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

# The tokens that stand for a medium in LLaMA-Factory's rows, by the column of the media.
PLACEHOLDERS = {"images": "<image>", "videos": "<video>"}
# LLaMA-Factory would expect an audio file for this token.
FOREIGN_PLACEHOLDER = "<audio>"
# A processor would take these tokens, wherever they stand, for further media.
_MEDIA_PADS = ("<|image_pad|>", "<|video_pad|>")
# The tokens by which chat models tell turns, media and the end of a text apart have this form. A
# tokenizer makes the token of it, not its characters, wherever it stands.
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")

# What is compared: an answer text, the path of an image, or the paths of a video's frames.
Candidate = str | tuple[str, ...]
# Context and candidates of the media of a comparison; None for candidates that are texts.
Parts = tuple[tuple[str, ...], tuple[Candidate, Candidate] | None]

# What a model is asked to write: a chain of thought with scores, totals and an answer; a JSON
# object of scores with a winner; or the bare answer.
Form = Literal["think", "json", "answer"]
FORMS: tuple[Form, ...] = ("think", "json", "answer")

Order = Literal["given", "swapped"]
ORDERS: tuple[Order, Order] = ("given", "swapped")


def valid_unicode(text: str) -> str:
    """The text with a "?" for each lone surrogate, which JSON and file names can hold."""
    return text.encode("utf-8", "replace").decode()


def placeholder_in(text: str) -> str:
    """A token in the text that a trainer would take for a medium; "" for a text without one."""
    return next((t for t in (*PLACEHOLDERS.values(), FOREIGN_PLACEHOLDER) if t in text), "")


def token_fault(text: str) -> str:
    """Why a text with a special token cannot be used ("holds ..."); "" for a text without one."""
    if token := placeholder_in(text) or next((t for t in _MEDIA_PADS if t in text), ""):
        return f"holds {token}; a trainer would look for a medium there"
    if found := _CONTROL_TOKEN.search(text):
        return (
            f"holds {found[0]}; a model reads this as a control token, and not as text: take it "
            "out, or leave the row out"
        )
    return ""


def comparison_key(
    task: str, text: str, context: Sequence[str], pair: tuple[Candidate, Candidate]
) -> str:
    """The identity of a comparison: 64 hexadecimal digits (sha256 of canonical JSON).

    `text` is the caption, instruction or question, `context` the media that it is about, `pair`
    the two candidates (media paths below the media root, or answer texts). Both presentation orders
    have the same key; the same caption with other images has another key.
    """
    text = unicodedata.normalize("NFC", text).strip()
    material = [task, text, list(context), sorted(pair, key=as_tuple)]
    canonical = json.dumps(material, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def as_tuple(candidate: Candidate) -> tuple[str, ...]:
    """The media of a candidate, or its one text."""
    return (candidate,) if isinstance(candidate, str) else candidate


def _candidate(media: tuple[str, ...]) -> Candidate:
    return media[0] if len(media) == 1 else media


@dataclass(frozen=True)
class Task:
    """One kind of comparison.

    `noun` names a candidate in texts ("Image 1"). `medium` is the type of the media that the model
    sees: the two candidates or, where candidates are answer texts, the medium of the question. A
    video is shown as its frames, which are images. `fields` are the names in braces that a template
    of the task needs; the first is the comparison's text. `templates` has the project's own prompt
    for every output form. `has_context`: media are shown before the
    candidates (the source of an edit), or besides them (of a question).
    """

    name: str
    noun: str
    medium: Literal["image", "video"]
    fields: tuple[str, ...]
    templates: Mapping[Form, str]
    has_context: bool

    @property
    def template(self) -> str:
        """The project's own prompt for a chain of thought."""
        return self.templates["think"]

    @property
    def compares_media(self) -> bool:
        """Whether the candidates are media, and not answers about a medium."""
        return len(self.fields) == 1

    @property
    def text_field(self) -> str:
        """The name in braces of the caption, instruction or question."""
        return self.fields[0]

    def parts(self, media: Sequence[str]) -> Parts:
        """Context and candidates of the media that are shown; None for candidates that are texts.

        The frames of two videos are two halves; of images the last two are compared. Raises
        ValueError for a number of media that the task does not have.
        """
        shown = tuple(media)
        if not self.compares_media:
            return shown, None
        if self.medium == "video":
            if not shown or len(shown) % 2:
                raise ValueError(
                    f"{len(shown)} media; task {self.name} shows as many frames of each video"
                )
            half = len(shown) // 2
            return (), (_candidate(shown[:half]), _candidate(shown[half:]))
        if len(shown) < 2 or (self.has_context and len(shown) != 3):
            raise ValueError(
                f"{len(shown)} media; task {self.name} shows "
                + ("the source and two edits" if self.has_context else "two media")
            )
        return shown[:-2], (shown[-2], shown[-1])

    @property
    def answers(self) -> tuple[str, str]:
        """The two answer strings; an answer block must be exactly one of them."""
        return f"{self.noun} 1 is better", f"{self.noun} 2 is better"


@dataclass(frozen=True)
class Comparison:
    """Two candidates for one text, and which of them people prefer.

    `label` is the preferred candidate, 1 or 2 in the given order. `source` names the data set.
    Media paths are relative to the media root. A video is the tuple of its frames.

    Raises ValueError for a label outside {1, 2}, an empty text, two equal candidates, or a token in
    a text that stands for a medium or controls a chat model.
    """

    task: str
    text: str
    candidates: tuple[Candidate, Candidate]
    label: int
    source: str = ""
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.label) is not int or self.label not in (1, 2):
            raise ValueError(f"the label is {self.label!r}; it must be 1 or 2")
        if not self.text.strip():
            raise ValueError("the caption or question is empty")
        if self.candidates[0] == self.candidates[1]:
            raise ValueError(f"both candidates are the same: {self.candidates[0]!r}")
        for text in (self.text, *chain.from_iterable(map(as_tuple, self.candidates))):
            if fault := token_fault(text):
                raise ValueError(f"a text of the record {fault}")

    @property
    def key(self) -> str:
        return comparison_key(self.task, self.text, self.context, self.candidates)

    def presented(self, order: Order) -> tuple[tuple[Candidate, Candidate], int]:
        """The candidates and the label in this presentation order."""
        first, second = self.candidates
        return (
            ((first, second), self.label) if order == "given" else ((second, first), 3 - self.label)
        )


# How a text was put back together. reasoning_field: a reasoning parser had split it;
# template_opening: it began inside its <think> block, which a chat template opens for the model. A
# model that leaves the opening out by itself is not told apart (1 of 3,000 texts of the demo).
Restored = Literal["", "reasoning_field", "template_opening"]


@dataclass(frozen=True)
class Response:
    """One sampled completion. `finish_reason` is the server's word (see finish_reasons).

    probability: of the answer "1", given 1 or 2; None where it was not asked for, or is not known
    """

    text: str
    finish_reason: str
    model: str
    sample: int
    restored: Restored = ""
    probability: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    verdict: correct | incorrect | unparsed | truncated
    coherence: wrong_sum | contradicts | tie | no_totals | coherent, "" when unparsed or truncated
    answer: 1 | 2 as presented, 0 without an answer
    mismatch: the summands of the totals are not the scores that the text gives before them
    """

    verdict: str
    coherence: str
    answer: int
    mismatch: bool = False


# Judged rows. Each row of correct.jsonl, incorrect.jsonl and unusable.jsonl has every key:
# `datasets` infers a column's type from the first chunk, and fails if a key is missing or null.
ROW_FIELDS: dict[str, type] = {
    "conversations": list,
    "images": list,
    "videos": list,
    "id": str,
    "task": str,
    "source": str,
    "order": str,
    "sample": int,
    "label": int,
    "answer": int,
    "verdict": str,
    "coherence": str,
    "finish_reason": str,
    "model": str,
    "template_hash": str,
    "form": str,
}

PAIR_FIELDS: dict[str, type] = {
    "problem": str,
    "chosen": str,
    "rejected": str,
    "images": list,
    "videos": list,
    "id": str,
    "task": str,
    "order": str,
    "chosen_answer": int,
    "chosen_model": str,
    "rejected_model": str,
    "form": str,
}


def conversation(prompt: str, completion: str) -> list[dict[str, str]]:
    """LLaMA-Factory's ShareGPT form of one turn."""
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": completion}]


def turns(row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and completion of a ShareGPT row with one turn. Raises ValueError otherwise."""
    talk = row.get("conversations")
    if not isinstance(talk, list) or len(talk) != 2:
        raise ValueError("'conversations' must be a list of one human and one gpt turn")
    values = []
    for turn, speaker in zip(talk, ("human", "gpt"), strict=True):
        if not isinstance(turn, Mapping) or turn.get("from") != speaker:
            raise ValueError(
                f"'conversations' must be a human turn, then a gpt turn: no {speaker!r}"
            )
        if not isinstance(turn.get("value"), str):
            raise ValueError(f"the {speaker} turn's 'value' must be a string")
        values.append(turn["value"])
    return values[0], values[1]


class PreferencePair(NamedTuple):
    """A chosen and a rejected chain of thought about one comparison in one presentation order.

    `chosen_answer` is the answer of the chosen text as presented, 1 or 2.
    """

    problem: str
    chosen: str
    rejected: str
    images: list[str]
    videos: list[str]
    id: str
    task: str
    order: str
    chosen_answer: int
    chosen_model: str
    rejected_model: str
    form: str

    def to_row(self) -> dict[str, Any]:
        return dict(zip(PAIR_FIELDS, self, strict=True))
