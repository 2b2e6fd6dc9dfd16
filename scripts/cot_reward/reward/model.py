"""RewardModel: a served reward model, asked about a caller's own candidates."""

import asyncio
import atexit
import json
import os
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from cot_reward.client.sender import MEDIA_THREADS, PREPARED_REQUESTS
from cot_reward.records import Candidate as Identity
from cot_reward.records import Comparison, Form
from cot_reward.reward.asking import Asker, Say, log
from cot_reward.reward.gate import Gate
from cot_reward.reward.loop import LoopThread
from cot_reward.reward.pictures import Picture, Pictures
from cot_reward.reward.question import (
    Candidate,
    Ready,
    check_question,
    question,
    ready_candidate,
    ready_context,
)
from cot_reward.reward.ranking import REFERENCE, check_most, plan, ranking
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.reward.settings import RewardSettings
from cot_reward.reward.votes import judgement
from cot_reward.tasks import TASKS

T = TypeVar("T")
Context: TypeAlias = Picture | Sequence[Picture]
# Prompt, first and second candidate, and the context where the task has one.
Item: TypeAlias = tuple[str, Candidate, Candidate] | tuple[str, Candidate, Candidate, Context]
# Prompt, candidates, and the context where the task has one.
Group: TypeAlias = tuple[str, Sequence[Candidate]] | tuple[str, Sequence[Candidate], Context]


class Memory(Protocol):
    """What was answered before: a folder's journal."""

    def recall(self, comparison: Comparison) -> Judgement | Failure | None:
        """What came of a comparison in this order of its candidates; None: ask."""

    async def keep(self, comparison: Comparison, found: Judgement | Failure) -> None:
        """Called with every answer, before anybody else hears of it."""


class RewardModel:
    """A reward model that a server holds (`scripts/serve.sh MODEL`, or any OpenAI-compatible one).

        with RewardModel("http://127.0.0.1:8000/v1", votes=4) as model:
            found = model.compare("a red cube", "a.png", "b.png")
            best = model.rank("a red cube", ["a.png", "b.png", "c.png"]).best

    A candidate is a picture (a path, bytes, or a PIL image), a list of pictures (the frames of a
    video), or, where `task` compares answers, a text; `context` are the pictures that a question or
    an edit is about. What goes wrong with one comparison is a value: a `Failure`, which is false.
    Only wrong arguments raise (TypeError, ValueError), and a server that cannot be used at all
    (UserError, at the first use or at `with`).

    Methods may be called from any thread; the twins with an `a` in front from any event loop. All
    work happens on one event loop in a thread of its own.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] = "http://127.0.0.1:8000/v1",
        *,
        model: str | None = None,
        api_key: str | None = None,
        template: str | os.PathLike[str] | None = None,
        task: str = "image_generation",
        form: Form = "think",
        votes: int = 1,
        temperature: float | None = None,
        orders: Literal["given", "swapped", "both"] = "both",
        max_tokens: int = 2048,
        seed: int = 0,
        image_max_pixels: int = 262144,
        concurrency: int | str = "auto",
        timeout: float = 600.0,
        deadline: float = 3600.0,
        max_attempts: int = 5,
        max_pause: float = 1800.0,
        sampling_defaults: Literal["neutral", "server"] = "neutral",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Connects at the first use.

        base_url: the server, or several
        model: its name there (None: the only one)
        api_key: None: the environment variable OPENAI_API_KEY, if it is set
        template: the file of the prompt that the model was trained on (None: the project's own)
        votes: texts for each comparison and order
        temperature: None: 0 for one vote, else 1
        concurrency: requests in flight; "auto": raised while the server becomes faster
        timeout, deadline: seconds for an attempt, and for a request with all its attempts
        max_pause: seconds to wait for a server that is out
        image_max_pixels: larger pictures are resized as in training

        The others are as the flags of scripts/image_stream_gpt.py. Raises ValueError for a bad
        value, UserError for a template that cannot be read.
        """
        self._settings = RewardSettings(
            [base_url] if isinstance(base_url, str) else list(base_url), model,
            None if template is None else Path(template), task, form, votes, temperature, orders,
            max_tokens, seed, sampling_defaults,
            None if chat_template_kwargs is None else json.dumps(dict(chat_template_kwargs)),
            image_max_pixels, str(concurrency), timeout, deadline, max_attempts, max_pause,
        )  # fmt: skip
        self._say = log
        self._begin(api_key)

    @classmethod
    def of(
        cls, settings: RewardSettings, api_key: str | None = None, say: Say = log
    ) -> "RewardModel":
        """The same from settings (of a script). `say` gets lines about the servers."""
        model = cls.__new__(cls)
        model._settings, model._say = settings, say
        model._begin(api_key)
        return model

    def _begin(self, api_key: str | None) -> None:
        settings = self._settings
        self._task = TASKS[settings.task]
        self._template = settings.template_text()
        # vLLM without --api-key accepts any key; the SDK refuses an empty one.
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._pictures = Pictures(settings.image_max_pixels, MEDIA_THREADS)
        self._asker: Asker | None = None
        self._opening: asyncio.Task[None] | None = None
        self._orders = len(settings.asked_orders)
        self._comparing = Gate(lambda: self._room)
        self._ranking = Gate(lambda: 2 * self._room)
        self._closed = False
        self._loop: LoopThread | None = None
        self._starting = threading.Lock()

    @property
    def settings(self) -> RewardSettings:
        return self._settings

    @property
    def template(self) -> str:
        """The text of the prompt's template."""
        return self._template

    # --- comparing --------------------------------------------------------------------------------

    def compare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context = ()
    ) -> Judgement | Failure:
        """Which of two candidates is better for the prompt (caption, instruction, question)."""
        check_question(self._task, prompt, (a, b), context)
        return self._run(self._compare(prompt, a, b, context))

    async def acompare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context = ()
    ) -> Judgement | Failure:
        """As `compare`."""
        check_question(self._task, prompt, (a, b), context)
        return await self._wait(self._compare(prompt, a, b, context))

    def compare_many(self, items: Iterable[Item]) -> list[Judgement | Failure]:
        """As `compare`, of many (prompt, a, b) or (prompt, a, b, context); results in their order.

        The server is kept as busy as it can be; memory does not grow with the pictures.
        """
        return self._run(self._compare_many(self._items(items)))

    async def acompare_many(self, items: Iterable[Item]) -> list[Judgement | Failure]:
        """As `compare_many`."""
        return await self._wait(self._compare_many(self._items(items)))

    # --- ranking ----------------------------------------------------------------------------------

    def rank(
        self,
        prompt: str,
        candidates: Sequence[Candidate | Failure],
        context: Context = (),
        max_comparisons: int | None = None,
        reference: Candidate | Failure | None = None,
    ) -> Ranking:
        """Candidates by comparisons of their pairs: all, or at most `max_comparisons`.

        A bounded schedule connects all candidates, and needs one comparison fewer than there are
        candidates (`schedule`); strengths are those of `bradley_terry`. With a `reference` each
        candidate is compared with it alone: the win rates are those against it. A Failure in the
        place of a candidate is one that the caller could not get: it is ranked last.
        """
        self._check_group(prompt, candidates, context, max_comparisons, reference)
        return self._run(self._rank(prompt, candidates, context, max_comparisons, reference))

    async def arank(
        self,
        prompt: str,
        candidates: Sequence[Candidate | Failure],
        context: Context = (),
        max_comparisons: int | None = None,
        reference: Candidate | Failure | None = None,
        *,
        memory: Memory | None = None,
    ) -> Ranking:
        """As `rank`. `memory` has what was answered before, and is told what is answered."""
        self._check_group(prompt, candidates, context, max_comparisons, reference)
        return await self._wait(
            self._rank(prompt, candidates, context, max_comparisons, reference, memory)
        )

    def rank_many(
        self, groups: Iterable[Group], max_comparisons: int | None = None
    ) -> list[Ranking]:
        """As `rank`, of many (prompt, candidates) or (prompt, candidates, context), in order."""
        return self._run(self._rank_many(self._groups(groups, max_comparisons), max_comparisons))

    async def arank_many(
        self, groups: Iterable[Group], max_comparisons: int | None = None
    ) -> list[Ranking]:
        """As `rank_many`."""
        return await self._wait(
            self._rank_many(self._groups(groups, max_comparisons), max_comparisons)
        )

    # --- opening and closing ----------------------------------------------------------------------

    def open(self) -> "RewardModel":
        """Connect now. Raises UserError for a server that cannot be used."""
        self._run(asyncio.sleep(0))
        return self

    async def aopen(self) -> "RewardModel":
        """As `open`."""
        await self._wait(asyncio.sleep(0))
        return self

    @property
    def served(self) -> dict[str, Any]:
        """Who answers, once it is open: `model`, and what tells its weights apart."""
        return {"model": self._asker.model, **self._asker.served} if self._asker else {}

    async def digest_of(self, picture: Picture) -> str:
        """The sha256 of a picture's content, which is not decoded. Raises MediaError."""
        return await self._wait(self._pictures.digest_of(picture))

    def summary(self) -> dict[str, Any]:
        """By server: its requests, its concurrency and its pauses."""
        return self._asker.summary() if self._asker else {}

    @property
    def encoded_pictures(self) -> int:
        """How many pictures were decoded and encoded: each content once, while it is kept."""
        return self._pictures.encoded

    def close(self) -> None:
        """Give up what is in flight; a closed model answers no more."""
        if not self._closed:
            self._closed = True
            if self._loop:
                self._loop.run(self._close())
                self._loop.stop()
            self._pictures.close()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> "RewardModel":
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> "RewardModel":
        try:
            return await self.aopen()
        except BaseException:
            await self.aclose()
            raise

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    # --- on the loop ------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """How many comparisons are prepared at a time."""
        requests = (self._asker.room if self._asker else 0) + PREPARED_REQUESTS
        return max(1, requests // self._orders)

    def _thread(self) -> LoopThread:
        with self._starting:
            if self._closed:
                raise RuntimeError("this RewardModel is closed; make another one")
            if self._loop is None:
                self._loop = LoopThread("cot_reward-client")
                _OPEN.add(self)
            return self._loop

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            thread = self._thread()
        except RuntimeError:
            call.close()
            raise
        return thread.run(self._after_open(call))

    async def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            thread = self._thread()
        except RuntimeError:
            call.close()
            raise
        return await thread.wait(self._after_open(call))

    async def _after_open(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            await self._open()
        except BaseException:
            call.close()
            raise
        return await call

    async def _open(self) -> None:
        """Connect, anew where the servers were given up. Raises UserError."""
        if self._asker is not None and not self._asker.gone:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(self._opened)
        # One attempt serves all who wait for it, and nobody's giving up ends it.
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        asker = Asker(self._settings, self._template, self._api_key, self._say)
        await asker.open()
        before, self._asker = self._asker, asker
        if before is not None:
            await before.close()

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            # Looked at here, for all who wait may have given up.
            opening.exception()

    async def _close(self) -> None:
        if self._asker is not None:
            await self._asker.close()
        # Whoever waits for pictures or a turn is told as well.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _compare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context
    ) -> Judgement | Failure:
        async with self._comparing.through():
            ready = await asyncio.gather(
                ready_candidate(a, self._task, self._pictures),
                ready_candidate(b, self._task, self._pictures),
                ready_context(context, self._task, self._pictures),
            )
            for one in ready:
                if isinstance(one, Failure):
                    return one
            first, second, about = (one for one in ready if isinstance(one, Ready))
            return await self._judge(prompt, first, second, about)

    async def _judge(
        self, prompt: str, first: Ready, second: Ready, context: Ready, memory: Memory | None = None
    ) -> Judgement | Failure:
        """What the model says, or has said, of two candidates."""
        asked = question(self._task, prompt, first, second, context)
        if isinstance(asked, Failure):
            return asked
        if memory and (known := memory.recall(asked.comparison)) is not None:
            return known
        settings = self._settings
        try:
            requests = [
                asked.request(order, self._template, settings.votes, settings.seed)
                for order in settings.asked_orders
            ]
        except ValueError as error:
            # The template has places for another number of pictures.
            return Failure("bad_media", str(error))
        assert self._asker is not None
        outcomes = await asyncio.gather(*(self._asker.ask(*request) for request in requests))
        found = judgement(
            [one for outcome in outcomes for one in outcome], self._task, settings.form
        )
        if memory:
            await memory.keep(asked.comparison, found)
        return found

    async def _compare_many(self, items: Sequence[tuple[Any, ...]]) -> list[Judgement | Failure]:
        return await asyncio.gather(*(self._compare(*item) for item in items))

    async def _rank(
        self,
        prompt: str,
        candidates: Sequence[Candidate | Failure],
        context: Context,
        max_comparisons: int | None,
        reference: Candidate | Failure | None,
        memory: Memory | None = None,
    ) -> Ranking:
        most = len(candidates) * max(1, len(candidates) - 1) // 2
        if reference is not None:
            most = len(candidates)
        async with self._ranking.through(max(1, min(max_comparisons or most, most))):
            given = [*candidates, *([] if reference is None else [reference])]
            # Each is encoded once, and kept while it is compared.
            *found, about = await asyncio.gather(
                *(ready_candidate(one, self._task, self._pictures) for one in given),
                ready_context(context, self._task, self._pictures),
            )
            against = found.pop() if reference is not None else None
            if isinstance(about, Failure):
                found = [one if isinstance(one, Failure) else about for one in found]
            planned = plan(
                [_identity(one) for one in found],
                max_comparisons,
                self._settings.seed,
                None if against is None else _identity(against),
            )

            async def compare(i: int, j: int) -> Judgement | Failure:
                first, second = found[i], against if j == REFERENCE else found[j]
                # The plan has no others.
                assert isinstance(first, Ready)
                assert isinstance(second, Ready)
                assert isinstance(about, Ready)
                async with self._comparing.through():
                    return await self._judge(prompt, first, second, about, memory)

            results = await asyncio.gather(*(compare(i, j) for i, j in planned.pairs))
        # Many candidates take seconds.
        return await asyncio.to_thread(ranking, planned, results)

    async def _rank_many(
        self, groups: Sequence[tuple[Any, ...]], max_comparisons: int | None
    ) -> list[Ranking]:
        return await asyncio.gather(
            *(
                self._rank(prompt, candidates, context, max_comparisons, None)
                for prompt, candidates, context in groups
            )
        )

    # --- arguments --------------------------------------------------------------------------------

    def _items(self, items: Iterable[Item]) -> list[tuple[Any, ...]]:
        """Items with their context. Raises TypeError and ValueError before anything is asked."""
        found: list[tuple[Any, ...]] = []
        for number, item in enumerate(items):
            given: tuple[Any, ...] = tuple(item)
            if len(given) not in (3, 4):
                raise ValueError(
                    f"item {number} has {len(given)} parts; it is (prompt, a, b) or "
                    "(prompt, a, b, context)"
                )
            prompt, a, b, context = (*given, ())[:4]
            check_question(self._task, prompt, (a, b), context)
            found.append((prompt, a, b, context))
        return found

    def _groups(
        self, groups: Iterable[Group], max_comparisons: int | None
    ) -> list[tuple[Any, ...]]:
        """Groups with their context. Raises TypeError and ValueError before anything is asked."""
        found: list[tuple[Any, ...]] = []
        for number, group in enumerate(groups):
            given: tuple[Any, ...] = tuple(group)
            if len(given) not in (2, 3):
                raise ValueError(
                    f"group {number} has {len(given)} parts; it is (prompt, candidates) or "
                    "(prompt, candidates, context)"
                )
            prompt, candidates, context = (*given, ())[:3]
            self._check_group(prompt, candidates, context, max_comparisons, None)
            found.append((prompt, candidates, context))
        return found

    def _check_group(
        self,
        prompt: str,
        candidates: Sequence[Candidate | Failure],
        context: Context,
        max_comparisons: int | None,
        reference: Candidate | Failure | None,
    ) -> None:
        """Raises TypeError and ValueError."""
        if not isinstance(candidates, list | tuple):
            raise TypeError(f"the candidates are a list, not {type(candidates).__name__}")
        against = [] if reference is None else [reference]
        check_question(self._task, prompt, (*candidates, *against), context)
        check_most(len(candidates), max_comparisons, reference is not None)


_OPEN: "weakref.WeakSet[RewardModel]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what a program leaves open: its connections would complain at the end."""
    for model in list(_OPEN):
        model.close()


def _identity(ready: Ready | Failure) -> Identity | Failure:
    return ready.identity if isinstance(ready, Ready) else ready
