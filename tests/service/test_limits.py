"""Places, bodies and time limits, without a server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cot_reward.service import limits
from cot_reward.service.limits import Body, Places, within
from cot_reward.service.refusals import ClosedByClientError, RefusalError

Message = dict[str, Any]


def messages(*parts: bytes, closed: bool = False) -> Callable[[], Awaitable[Message]]:
    """What a server hands on: the parts of a body, then (or instead of the end) a disconnect."""
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if not closed:
        left[-1]["more_body"] = False

    async def receive() -> Message:
        if left:
            return left.pop(0)
        if closed:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def refused(call: Callable[[], Awaitable[object]]) -> tuple[int, str, int]:
    async def run() -> object:
        return await call()

    with pytest.raises(RefusalError) as caught:
        asyncio.run(run())
    return caught.value.status, caught.value.kind, caught.value.retry_after


def test_a_body_is_read_in_parts():
    places = Places(1, 1, 100)
    assert asyncio.run(Body(messages(b"ab", b"cd"), {}, 4).read(places)) == b"abcd"
    assert places.buffered == 4


@pytest.mark.parametrize("headers", [{}, {"content-length": "5"}, {"content-length": "nonsense"}])
def test_a_body_over_the_limit_is_refused_and_leaves_no_bytes(headers):
    places = Places(1, 1, 100)
    body = Body(messages(b"ab", b"cde"), headers, 4)
    assert refused(lambda: body.read(places))[:2] == (413, "too_large")
    assert places.buffered == 0


def test_bodies_together_are_bounded():
    places = Places(4, 4, 5)
    asyncio.run(Body(messages(b"abc"), {}, 4).read(places))
    status, kind, retry_after = refused(lambda: Body(messages(b"abc"), {}, 4).read(places))
    assert (status, kind) == (503, "memory_full")
    assert retry_after >= 1
    assert places.buffered == 3
    places.buffer(-3)
    assert asyncio.run(Body(messages(b"abc"), {}, 4).read(places)) == b"abc"


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_BODY_SECONDS", 0.1)
    places = Places(1, 1, 100)

    async def receive() -> Message:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}

    # A byte now and then is not enough.
    assert refused(lambda: Body(receive, {}, 50).read(places))[:2] == (408, "slow_body")
    assert places.buffered == 0


def test_a_caller_that_goes_while_it_sends_leaves_no_bytes():
    places = Places(1, 1, 100)
    with pytest.raises(ClosedByClientError):
        asyncio.run(Body(messages(b"ab", closed=True), {}, 4).read(places))
    assert places.buffered == 0


def test_a_place_is_for_one_and_is_given_back():
    places = Places(1, 1, 100)
    with places.enter(), places.enter():
        assert places.inside == 2
        with pytest.raises(RefusalError) as caught, places.enter():
            raise AssertionError
        assert caught.value.kind == "queue_full"
        assert caught.value.retry_after >= 1
    assert places.inside == 0


def test_who_waits_gets_the_place_in_turn():
    async def run() -> list[int]:
        places, order = Places(1, 9, 100), []

        async def one(number: int) -> None:
            async with places.work():
                order.append(number)
                assert places.working == 1
                await asyncio.sleep(0)

        await asyncio.gather(*map(one, range(5)))
        assert places.working == 0
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_a_waiting_request_that_is_cancelled_gives_its_turn_on():
    async def run() -> bool:
        places = Places(1, 9, 100)
        first = asyncio.Event()

        async def hold() -> None:
            async with places.work():
                await first.wait()

        async def wait() -> bool:
            async with places.work():
                return True

        held = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        first.set()
        await held
        return await waiting[2]

    assert asyncio.run(run())


async def _never(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


def test_work_ends_with_its_time():
    async def run() -> list[str]:
        ended: list[str] = []
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await within(_never(ended), loop.time() + 0.05, messages(b""), asyncio.Event())
        return ended

    assert asyncio.run(run()) == ["ended"]


def test_work_ends_with_its_caller():
    async def run() -> list[str]:
        ended: list[str] = []
        gone = messages(closed=True)
        with pytest.raises(ClosedByClientError):
            await within(
                _never(ended), asyncio.get_running_loop().time() + 60, gone, asyncio.Event()
            )
        return ended

    assert asyncio.run(run()) == ["ended"]


def test_work_ends_with_the_service():
    async def run() -> list[str]:
        ended: list[str] = []
        closed = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, closed.set)
        with pytest.raises(RefusalError) as caught:
            await within(
                _never(ended), asyncio.get_running_loop().time() + 60, messages(b""), closed
            )
        assert caught.value.kind == "shutting_down"
        return ended

    assert asyncio.run(run()) == ["ended"]


def test_the_result_and_the_error_of_work_are_handed_on():
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise RefusalError(422, "kind", "a sentence")

    async def run(work: Callable[[], Any]) -> int:
        until = asyncio.get_running_loop().time() + 60
        receive = messages(b"")
        await receive()
        return await within(work(), until, receive, asyncio.Event())

    assert asyncio.run(run(good)) == 7
    with pytest.raises(RefusalError):
        asyncio.run(run(bad))
