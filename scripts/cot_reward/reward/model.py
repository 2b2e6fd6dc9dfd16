"""RewardModel: a served reward model, asked about a caller's own candidates."""

import asyncio
import atexit
import json
import os
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from cot_reward.records import Form
from cot_reward.reward.arguments import (
    Context,
    Group,
    Item,
    check_group,
    full_groups,
    full_items,
)
from cot_reward.reward.asking import Say, log
from cot_reward.reward.core import Core, Memory
from cot_reward.reward.loop import LoopThread, result_of
from cot_reward.reward.pictures import Picture, held
from cot_reward.reward.question import Candidate, check_question
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.reward.settings import RewardSettings

T = TypeVar("T")

CLOSE_SECONDS = 20.0


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
        timeout, deadline: seconds for an attempt, and for a request with all its attempts; pauses
            are not counted
        max_pause: seconds to wait for a server that is out
        image_max_pixels: larger pictures are resized as in training

        The others are as the flags of scripts/image_stream_gpt.py. Raises ValueError for a bad
        value, UserError for a template that cannot be read.
        """
        settings = RewardSettings(
            [base_url] if isinstance(base_url, str) else list(base_url), model,
            None if template is None else Path(template), task, form, votes, temperature, orders,
            max_tokens, seed, sampling_defaults,
            None if chat_template_kwargs is None else json.dumps(dict(chat_template_kwargs)),
            image_max_pixels, str(concurrency), timeout, deadline, max_attempts, max_pause,
        )  # fmt: skip
        self._begin(settings, api_key, log)

    @classmethod
    def of(
        cls, settings: RewardSettings, api_key: str | None = None, say: Say = log
    ) -> "RewardModel":
        """The same from settings (of a script). `say` gets lines about the servers."""
        model = cls.__new__(cls)
        model._begin(settings, api_key, say)
        return model

    def _begin(self, settings: RewardSettings, api_key: str | None, say: Say) -> None:
        self._settings = settings
        key = os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key
        self._core = Core(settings, key, say)
        self._closed = False
        self._loop: LoopThread | None = None
        self._let_go: weakref.finalize[..., Any] | None = None
        self._starting = threading.Lock()

    @property
    def settings(self) -> RewardSettings:
        return self._settings

    @property
    def template(self) -> str:
        """The text of the prompt's template."""
        return self._core.template

    # --- comparing --------------------------------------------------------------------------------

    def compare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context = ()
    ) -> Judgement | Failure:
        """Which of two candidates is better for the prompt (caption, instruction, question)."""
        check_question(self._core.task, prompt, (a, b), context)
        return self._run(self._core.compare(prompt, a, b, context))

    async def acompare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context = ()
    ) -> Judgement | Failure:
        """As `compare`. Pictures in memory are copied first, and may be drawn on afterwards."""
        check_question(self._core.task, prompt, (a, b), context)
        return await self._wait(self._core.compare(prompt, held(a), held(b), held(context)))

    def compare_many(self, items: Iterable[Item]) -> list[Judgement | Failure]:
        """As `compare`, of many (prompt, a, b) or (prompt, a, b, context); results in their order.

        Pictures in memory must not change until the end: they are read when their turn comes.
        The server is kept as busy as it can be; memory does not grow with the pictures.
        """
        return self._run(self._core.compare_many(full_items(items, self._core.task)))

    async def acompare_many(self, items: Iterable[Item]) -> list[Judgement | Failure]:
        """As `compare_many`."""
        return await self._wait(self._core.compare_many(full_items(items, self._core.task)))

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
        check_group(self._core.task, prompt, candidates, context, max_comparisons, reference)
        return self._run(self._core.rank(prompt, candidates, context, max_comparisons, reference))

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
        """As `rank`. `memory` has what was answered before, and is told what is answered.

        Pictures in memory are copied first, and may be drawn on afterwards.
        """
        check_group(self._core.task, prompt, candidates, context, max_comparisons, reference)
        return await self._wait(
            self._core.rank(
                prompt, held(candidates), held(context), max_comparisons, held(reference), memory
            )
        )

    def rank_many(
        self, groups: Iterable[Group], max_comparisons: int | None = None
    ) -> list[Ranking]:
        """As `rank`, of many (prompt, candidates) or (prompt, candidates, context), in order."""
        checked = full_groups(groups, self._core.task, max_comparisons)
        return self._run(self._core.rank_many(checked, max_comparisons))

    async def arank_many(
        self, groups: Iterable[Group], max_comparisons: int | None = None
    ) -> list[Ranking]:
        """As `rank_many`."""
        checked = full_groups(groups, self._core.task, max_comparisons)
        return await self._wait(self._core.rank_many(checked, max_comparisons))

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
        asker = self._core.asker
        return {"model": asker.model, **asker.served} if asker else {}

    async def digest_of(self, picture: Picture) -> str:
        """The sha256 of a picture's content, which is not decoded. Raises MediaError."""
        return await self._wait(self._core.pictures.digest_of(picture))

    def summary(self) -> dict[str, Any]:
        """By server: its requests, its concurrency and its pauses."""
        return self._core.asker.summary() if self._core.asker else {}

    @property
    def encoded_pictures(self) -> int:
        """How many pictures were decoded and encoded: each content once, while it is kept."""
        return self._core.pictures.encoded

    def close(self) -> None:
        """Give up what is in flight; a closed model answers no more."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
        if self._let_go:
            self._let_go.detach()
        # The thread of a forked process's parent is not in this process.
        if self._loop is None or not self._loop.is_here:
            return
        # A program must end even if a connection does not.
        with suppress(TimeoutError):
            result_of(self._loop.begin(self._core.close()), CLOSE_SECONDS)
        self._loop.stop()
        self._core.pictures.close()

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

    def _begun(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """The call, which runs on the loop. Raises RuntimeError in a model that cannot be used."""
        try:
            # One step: what is begun before `close` is ended by it.
            with self._starting:
                if self._closed:
                    raise RuntimeError("this RewardModel is closed; make another one")
                if self._loop is None:
                    self._loop = LoopThread("cot_reward-client")
                    _OPEN.add(self)
                    # Of a model that is let go without `close`; `_close_all` is for the others.
                    self._let_go = weakref.finalize(self, _let_go, self._loop, self._core)
                    self._let_go.atexit = False
                return self._loop.begin(self._after_open(call))
        except RuntimeError:
            call.close()
            raise

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return result_of(self._begun(call))

    async def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._begun(call))

    async def _after_open(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            await self._core.open()
        except BaseException:
            call.close()
            raise
        return await call


_OPEN: "weakref.WeakSet[RewardModel]" = weakref.WeakSet()


def _let_go(loop: LoopThread, core: Core) -> None:
    async def close() -> None:
        await core.close()
        core.pictures.close()

    if loop.is_here:
        loop.end(close())


@atexit.register
def _close_all() -> None:
    """Close what a program leaves open: its connections would complain at the end."""
    for model in list(_OPEN):
        model.close()
