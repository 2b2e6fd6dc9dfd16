"""What a RewardModel does on its event loop: it connects, compares and ranks."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from cot_reward.client.sender import MEDIA_THREADS, PREPARED_REQUESTS
from cot_reward.records import Candidate as Identity
from cot_reward.records import Comparison
from cot_reward.reward.arguments import Context, FullGroup, FullItem
from cot_reward.reward.asking import Asker, Say
from cot_reward.reward.gate import Gate
from cot_reward.reward.pictures import Pictures
from cot_reward.reward.question import Candidate, Ready, question, ready_candidate, ready_context
from cot_reward.reward.ranking import REFERENCE, plan, ranking
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.reward.settings import RewardSettings
from cot_reward.reward.votes import judgement
from cot_reward.tasks import TASKS


class Memory(Protocol):
    """What was answered before: a folder's journal."""

    def recall(self, comparison: Comparison) -> Judgement | Failure | None:
        """What came of a comparison in this order of its candidates; None: ask."""

    async def keep(self, comparison: Comparison, found: Judgement | Failure) -> None:
        """Called with every answer, before anybody else hears of it."""


class Core:
    """The coroutines behind a RewardModel, whose methods say what they give.

    It belongs to one event loop. The arguments were checked before (`arguments`).
    """

    def __init__(self, settings: RewardSettings, api_key: str, say: Say) -> None:
        """Raises UserError for a template that cannot be read."""
        self.template = settings.template_text()
        self.task = TASKS[settings.task]
        self.pictures = Pictures(settings.image_max_pixels, MEDIA_THREADS)
        self.asker: Asker | None = None
        self._settings, self._api_key, self._say = settings, api_key, say
        self._opening: asyncio.Task[None] | None = None
        self._comparing = Gate(lambda: self._room)
        self._ranking = Gate(lambda: 2 * self._room)

    @property
    def _room(self) -> int:
        """How many comparisons are prepared at a time."""
        requests = (self.asker.room if self.asker else 0) + PREPARED_REQUESTS
        return max(1, requests // len(self._settings.asked_orders))

    async def open(self) -> None:
        """Connect, anew where the servers were given up. Raises UserError."""
        if self.asker is not None and not self.asker.gone:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(self._opened)
        # One attempt serves all who wait for it, and nobody's giving up ends it.
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        asker = Asker(self._settings, self.template, self._api_key, self._say)
        await asker.open()
        before, self.asker = self.asker, asker
        if before is not None:
            if (before.model, before.served) != (asker.model, asker.served):
                self._say(
                    f"other weights answer now: {asker.model}, and {before.model} before; answers "
                    "of the two do not compare"
                )
            await before.close()

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            # Looked at here, for all who wait may have given up.
            opening.exception()

    async def close(self) -> None:
        if self.asker is not None:
            await self.asker.close()
        # Whoever waits for pictures or a turn is told as well.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def compare(
        self, prompt: str, a: Candidate, b: Candidate, context: Context
    ) -> Judgement | Failure:
        async with self._comparing.through():
            ready = await asyncio.gather(
                ready_candidate(a, self.task, self.pictures),
                ready_candidate(b, self.task, self.pictures),
                ready_context(context, self.task, self.pictures),
            )
            for one, where in zip(ready, ("candidate 1: ", "candidate 2: ", ""), strict=True):
                if isinstance(one, Failure):
                    return replace(one, detail=where + one.detail)
            first, second, about = (one for one in ready if isinstance(one, Ready))
            return await self._judge(prompt, first, second, about)

    async def _judge(
        self, prompt: str, first: Ready, second: Ready, context: Ready, memory: Memory | None = None
    ) -> Judgement | Failure:
        """What the model says, or has said, of two candidates."""
        asked = question(self.task, prompt, first, second, context)
        if isinstance(asked, Failure):
            return asked
        if memory and (known := memory.recall(asked.comparison)) is not None:
            return known
        settings = self._settings
        try:
            requests = [
                asked.request(order, self.template, settings.votes, settings.seed)
                for order in settings.asked_orders
            ]
        except ValueError as error:
            # The template has places for another number of pictures.
            return Failure("bad_media", str(error))
        assert self.asker is not None
        outcomes = await asyncio.gather(*(self.asker.ask(*request) for request in requests))
        found = judgement(
            [one for outcome in outcomes for one in outcome], self.task, settings.form
        )
        if memory:
            await memory.keep(asked.comparison, found)
        return found

    async def compare_many(self, items: Sequence[FullItem]) -> list[Judgement | Failure]:
        return await asyncio.gather(*(self.compare(*item) for item in items))

    async def rank(
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
                *(ready_candidate(one, self.task, self.pictures) for one in given),
                ready_context(context, self.task, self.pictures),
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

    async def rank_many(
        self, groups: Sequence[FullGroup], max_comparisons: int | None
    ) -> list[Ranking]:
        return await asyncio.gather(
            *(
                self.rank(prompt, candidates, context, max_comparisons, None)
                for prompt, candidates, context in groups
            )
        )


def _identity(ready: Ready | Failure) -> Identity | Failure:
    return ready.identity if isinstance(ready, Ready) else ready
