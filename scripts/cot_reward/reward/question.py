"""A caller's question: the candidates and pictures that it gives, as a comparison and requests."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

from cot_reward.client import wire
from cot_reward.client.wire import Request
from cot_reward.inference.ledger import is_ascending
from cot_reward.inference.plan import request_seed
from cot_reward.media.paths import MediaError
from cot_reward.records import Candidate as Identity
from cot_reward.records import Comparison, Order, Task, as_tuple, token_fault
from cot_reward.reward.pictures import Picture, Pictures, Shown, is_picture
from cot_reward.reward.results import Failure
from cot_reward.tasks.prompts import render, shown_media

# What is compared: a picture, the frames of a video, or the text of an answer.
Candidate: TypeAlias = Picture | Sequence[Picture]
# How the detail of a Failure begins that is the context's.
CONTEXT = "the context: "


@dataclass(frozen=True)
class Ready:
    """A candidate or a context that can be sent.

    identity: of the content: a text, the digest of a picture, or those of a video's frames
    shown: its pictures; none for a text
    """

    identity: Identity
    shown: tuple[Shown, ...] = ()


def pictures_in(candidate: object, task: Task) -> tuple[Picture, ...]:
    """The pictures of a candidate; none for a text. Raises TypeError for another type."""
    if not task.compares_media:
        if not isinstance(candidate, str):
            raise TypeError(
                f"task {task.name} compares answers: a candidate is a str, not "
                f"{type(candidate).__name__}"
            )
        return ()
    return tuple_of_pictures(candidate, "a candidate")


def tuple_of_pictures(value: object, what: str) -> tuple[Picture, ...]:
    """One picture, or a sequence of pictures, as a tuple. Raises TypeError."""
    many = value if isinstance(value, list | tuple) else (value,)
    for picture in many:
        if not is_picture(picture):
            raise TypeError(
                f"{what} is a path, bytes, a PIL image or a list of these (the frames of a video), "
                f"not {type(picture).__name__}"
            )
    return tuple(many)


def check_question(
    task: Task, prompt: object, candidates: Sequence[object], context: object
) -> None:
    """Raises TypeError for arguments of other types than a question has."""
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt is a str, not {type(prompt).__name__}")
    for candidate in candidates:
        if not isinstance(candidate, Failure):
            pictures_in(candidate, task)
    tuple_of_pictures(context, "the context")


async def ready_candidate(
    candidate: Candidate | Failure, task: Task, pictures: Pictures
) -> Ready | Failure:
    """A candidate with its pictures checked and encoded, or why it cannot be used.

    A Failure in its place is the reason that the caller knows already.
    """
    if isinstance(candidate, Failure):
        return candidate
    given = pictures_in(candidate, task)
    if not task.compares_media:
        text = str(candidate)
        if not text.strip():
            return Failure("bad_text", "the answer is empty")
        if fault := token_fault(text):
            return Failure("bad_text", f"the answer {fault}")
        return Ready(text)
    if not given or (task.medium == "image" and len(given) > 1):
        wanted = "one picture" if task.medium == "image" else "its frames"
        return Failure(
            "bad_media", f"{len(given)} pictures; a candidate of task {task.name} is {wanted}"
        )
    return await _ready(given, pictures)


async def ready_context(
    context: Picture | Sequence[Picture], task: Task, pictures: Pictures
) -> Ready | Failure:
    """The context with its pictures checked and encoded, or why it cannot be used."""
    given = tuple_of_pictures(context, "the context")
    if not task.has_context and given:
        return Failure(
            "bad_media", f"task {task.name} shows no context, and {len(given)} are given"
        )
    if task.has_context and not given:
        return Failure(
            "bad_media", f"task {task.name} needs the picture that it is about as context"
        )
    if task.has_context and task.medium == "image" and task.compares_media and len(given) > 1:
        return Failure("bad_media", f"{len(given)} pictures; task {task.name} has one source")
    found = await _ready(given, pictures) if given else Ready(())
    return replace(found, detail=CONTEXT + found.detail) if isinstance(found, Failure) else found


async def _ready(given: Sequence[Picture], pictures: Pictures) -> Ready | Failure:
    try:
        shown = tuple(await asyncio.gather(*(pictures.shown(picture) for picture in given)))
    except MediaError as error:
        return Failure(error.reason, str(error))
    digests = tuple(one.digest for one in shown)
    return Ready(digests[0] if len(digests) == 1 else digests, shown)


@dataclass(frozen=True)
class Question:
    """Two candidates that can be asked about."""

    comparison: Comparison
    key: str
    urls: dict[str, bytes]

    def request(self, order: Order, template: str, votes: int, seed: int) -> tuple[Request, bytes]:
        """A request, and its content.

        Its seed depends on what is shown, and not on which candidate the caller names first.
        """
        comparison = self.comparison
        shown_as: Order = "given" if is_ascending(comparison, order) else "swapped"
        request = Request(
            comparison, self.key, order, 0, votes,
            seed=request_seed(seed, self.key, shown_as),
            prompt=render(comparison, order, template),
            media=shown_media(comparison, order),
        )  # fmt: skip
        return request, wire.content(request.prompt, ((self.urls[one],) for one in request.media))


def question(
    task: Task, prompt: str, first: Ready, second: Ready, context: Ready
) -> Question | Failure:
    """The question about two candidates, or why it cannot be asked."""
    if first.identity == second.identity:
        return Failure("same_candidates", "both candidates are the same")
    if len(first.shown) != len(second.shown):
        return Failure(
            "bad_media",
            f"{len(first.shown)} and {len(second.shown)} frames; task {task.name} shows as many of "
            "each video",
        )
    try:
        comparison = Comparison(
            task.name, prompt, (first.identity, second.identity), 1, context=_media(context)
        )
        # A text that is no Unicode has none.
        key = comparison.key
    except ValueError as error:
        return Failure("bad_text", str(error))
    urls = {one.digest: one.url for one in chain(context.shown, first.shown, second.shown)}
    return Question(comparison, key, urls)


def _media(context: Ready) -> tuple[str, ...]:
    return as_tuple(context.identity)
