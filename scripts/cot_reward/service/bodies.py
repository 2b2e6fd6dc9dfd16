"""A request's JSON: its fields, and from there to what is asked."""

from dataclasses import dataclass
from typing import Annotated, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cot_reward.errors import nearest
from cot_reward.records import Task
from cot_reward.service.pictures import picture_bytes
from cot_reward.service.refusals import RefusalError
from cot_reward.service.settings import ServiceSettings

# A picture, a video as its frames, or an answer as text.
Medium = bytes | tuple[bytes, ...]
# Lists stop at their first wrong item: pydantic makes a kilobyte of each error.
Sent = Annotated[
    str | Annotated[list[str], Field(fail_fast=True)],
    Field(
        description="a picture (data URL or base64), a list of frames, or, where answers are "
        "compared, a text"
    ),
]
# Errors of a request that are shown; a body of many fields can have as many.
_SHOWN_ERRORS = 3
# Parts of a body, each of which is an object of a hundred bytes in memory. Pictures have no comma
# but that of a data URL.
_MOST_COMMAS = 100_000
_MOST_FIELDS = 100
# A wrong value is quoted up to here: it may be a picture of a megabyte.
_QUOTED_CHARACTERS = 60


class Body(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(description="the caption, instruction or question")]
    candidates: Annotated[list[Sent], Field(fail_fast=True)]
    context: Annotated[
        list[str], Field(fail_fast=True, description="pictures that come before the candidates")
    ] = []
    texts: Annotated[bool, Field(description="whether the chains of thought are sent, too")] = True


class CompareBody(Body):
    """Which of two candidates is better?"""

    candidates: Annotated[list[Sent], Field(fail_fast=True, min_length=2, max_length=2)]


class RankBody(Body):
    """Which order do candidates have?"""

    candidates: Annotated[list[Sent], Field(fail_fast=True, min_length=2)]
    max_comparisons: Annotated[
        int | None, Field(ge=1, description="pairs that are compared, at most (default: all)")
    ] = None
    texts: bool = False


AnyBody = TypeVar("AnyBody", bound=Body)


@dataclass(frozen=True)
class Question:
    """What is asked: pictures as the bytes of their files, in every place."""

    prompt: str
    candidates: tuple[Medium | str, ...]
    context: tuple[bytes, ...]


def parse(kind: type[AnyBody], body: bytes | bytearray) -> AnyBody:
    """Raises RefusalError: 400 for what is no JSON object, 422 for other fields or values."""
    if body.count(b",") > _MOST_COMMAS:
        raise RefusalError(422, "too_many", f"the body has more than {_MOST_COMMAS:,} parts")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusalError(400, "bad_json", f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusalError(400, "bad_json", "the body is no JSON object")
    if len(value) > _MOST_FIELDS:
        raise RefusalError(422, "too_many", f"the body has {len(value):,} fields")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        shown = "; ".join(
            _sentence(".".join(map(str, one["loc"])), one["type"], one["msg"], kind)
            for one in found[:_SHOWN_ERRORS]
        )
        more = f"; and {len(found) - _SHOWN_ERRORS} more" if len(found) > _SHOWN_ERRORS else ""
        raise RefusalError(422, "bad_request", shown + more) from None


def _sentence(where: str, fault: str, message: str, kind: type[Body]) -> str:
    if fault == "extra_forbidden":
        name = where[:_QUOTED_CHARACTERS]
        return f"unknown field {name!r}.{nearest(name, kind.model_fields)}"
    return f"{where[:_QUOTED_CHARACTERS]}: {message}"


def question(body: Body, task: Task, settings: ServiceSettings) -> Question:
    """What the body asks; it blocks as long as base64 takes. Raises RefusalError."""
    if len(body.candidates) > settings.max_candidates:
        raise RefusalError(
            422, "too_many",
            f"{len(body.candidates)} candidates, and this service ranks {settings.max_candidates}",
        )  # fmt: skip
    _check_text(body.prompt, "the prompt", settings)
    pictures = list(body.context)
    if task.compares_media:
        pictures += [frame for sent in body.candidates for frame in _frames(sent)]
    if len(pictures) > settings.max_pictures:
        raise RefusalError(
            422, "too_many",
            f"{len(pictures)} pictures, and this service takes {settings.max_pictures} a request",
        )  # fmt: skip
    return Question(
        body.prompt,
        tuple(
            _medium(sent, f"candidates[{number}]", settings)
            if task.compares_media
            else _answer(sent, f"candidates[{number}]", task, settings)
            for number, sent in enumerate(body.candidates)
        ),
        tuple(
            picture_bytes(text, f"context[{number}]", settings.max_picture_pixels)
            for number, text in enumerate(body.context)
        ),
    )


def _frames(sent: str | list[str]) -> list[str]:
    return [sent] if isinstance(sent, str) else sent


def _medium(sent: str | list[str], where: str, settings: ServiceSettings) -> Medium:
    if isinstance(sent, str):
        return picture_bytes(sent, where, settings.max_picture_pixels)
    if not sent:
        raise RefusalError(422, "empty", f"{where} is a video of no frames")
    return tuple(
        picture_bytes(text, f"{where}[{number}]", settings.max_picture_pixels)
        for number, text in enumerate(sent)
    )


def _answer(sent: str | list[str], where: str, task: Task, settings: ServiceSettings) -> str:
    if not isinstance(sent, str):
        raise RefusalError(422, "bad_request", f"{where}: an answer of {task.name} is a text")
    _check_text(sent, where, settings)
    return sent


def _check_text(text: str, where: str, settings: ServiceSettings) -> None:
    """A text is in the request of every comparison that it is part of."""
    if len(text) > settings.max_text_characters:
        raise RefusalError(
            422, "too_large",
            f"{where} has {len(text):,} characters, and this service takes "
            f"{settings.max_text_characters:,}",
        )  # fmt: skip
