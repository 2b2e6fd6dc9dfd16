"""Several servers as one: slots, where a request goes, and servers that come and go."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from cot_reward.client.capacity import Capacity
from cot_reward.client.fleet import MANY_FAILURES, Fleet, Member, merged_summary
from cot_reward.client.outage import Outage
from cot_reward.client.roster import read_addresses
from cot_reward.client.server import Server
from cot_reward.client.wire import Sampling

SAMPLING = Sampling("mock", 1.0, 1.0, 100, 30, 60, 3)


def member_with(limit: int, seconds: float = 0.0, stop: asyncio.Event | None = None) -> Member:
    """A server that is never contacted, which answers in so many seconds."""
    server = Server("http://127.0.0.1:9/v1", "none")
    outage = Outage(server, SAMPLING, 1, stop or asyncio.Event(), print)
    member = Member(server, SAMPLING, Capacity(limit), outage)
    if seconds:
        member.answered(seconds)
    return member


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await main

    return asyncio.run(bounded())


def test_slots_are_handed_out_in_turn_and_never_more_than_there_are():
    async def main():
        fleet = Fleet(asyncio.Event())
        fleet.add(member_with(3))
        flying, most_flying, order = 0, 0, []

        async def hold_a_slot(number):
            nonlocal flying, most_flying
            member = await fleet.acquire(str(number))
            order.append(number)
            flying += 1
            most_flying = max(most_flying, flying)
            await asyncio.sleep(0.001)
            flying -= 1
            fleet.release(member)

        tasks = [asyncio.create_task(hold_a_slot(number)) for number in range(20)]
        await asyncio.sleep(0)
        tasks[5].cancel()  # a waiter that gives up costs no slot
        await asyncio.gather(*tasks, return_exceptions=True)
        return most_flying, order

    most_flying, order = run(main())
    assert most_flying == 3
    assert order == [number for number in range(20) if number != 5]


def test_a_cancelled_request_gives_back_the_slot_that_it_just_got():
    async def main():
        fleet = Fleet(asyncio.Event())
        member = member_with(1)
        fleet.add(member)
        await fleet.acquire("a")
        waiting = asyncio.create_task(fleet.acquire("b"))
        await asyncio.sleep(0)
        fleet.release(member)  # the slot is given to the waiting request, which is cancelled
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return member.capacity.in_flight

    assert run(main()) == 0


def test_requests_of_a_comparison_go_to_one_server_and_comparisons_to_the_emptiest():
    async def main():
        fleet = Fleet(asyncio.Event())
        first, second = member_with(2), member_with(2)
        fleet.add(first)
        fleet.add(second)
        asked = [await fleet.acquire(key) for key in ("a", "b")]
        assert asked == [first, second]
        assert await fleet.acquire("a") is first
        # The slots of the first server are taken: a third request about "a" waits for it, while
        # another comparison goes elsewhere.
        waiting = asyncio.create_task(fleet.acquire("a"))
        assert await fleet.acquire("c") is second
        assert not waiting.done()
        fleet.release(first)
        assert await waiting is first

    run(main())


def test_two_requests_of_a_comparison_that_wait_together_stay_together():
    async def main():
        fleet = Fleet(asyncio.Event())
        waiting = [asyncio.create_task(fleet.acquire(key)) for key in "aabbcc"]
        await asyncio.sleep(0)
        for _ in range(3):
            fleet.add(member_with(2))
        got = await asyncio.gather(*waiting)
        return [got[at] is got[at + 1] for at in (0, 2, 4)], len({id(member) for member in got})

    assert run(main()) == ([True] * 3, 3)


@pytest.mark.parametrize("more_coming", [True, False])
def test_at_the_end_no_request_goes_to_a_server_that_would_answer_it_later(more_coming):
    async def main():
        fleet = Fleet(asyncio.Event())
        fast, slow = member_with(2, seconds=1), member_with(2, seconds=10)
        fleet.add(fast)
        fleet.add(slow)
        fleet.more_coming = more_coming
        assert [await fleet.acquire(key) for key in "ab"] == [fast, fast]
        third = asyncio.create_task(fleet.acquire("c"))
        await asyncio.sleep(0)
        if more_coming:
            return await third is slow
        assert not third.done()
        fleet.release(fast)
        return await third is fast

    assert run(main())


def test_many_waiting_requests_are_worth_a_slow_server():
    async def main():
        fleet = Fleet(asyncio.Event())
        fast, slow = member_with(1, seconds=1), member_with(1, seconds=5)
        fleet.add(fast)
        fleet.add(slow)
        tasks = [asyncio.create_task(fleet.acquire(str(number))) for number in range(20)]
        await asyncio.sleep(0)
        taken = fast.capacity.in_flight, slow.capacity.in_flight
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return taken

    assert run(main()) == (1, 1)


def test_a_server_that_answers_nothing_rests_while_others_work():
    async def main():
        fleet = Fleet(asyncio.Event())
        failing, working = member_with(9), member_with(1, seconds=1)
        fleet.add(failing)
        fleet.add(working)
        fleet.more_coming = True
        assert await fleet.acquire("a") is failing
        for _ in range(MANY_FAILURES):
            fleet.failed(failing)
        assert await fleet.acquire("b") is working
        # Also what has its pictures there waits for the other one.
        waiting = asyncio.create_task(fleet.acquire("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
        fleet.release(working)
        assert await waiting is working
        # Where all rest, all work.
        fleet.rest(working, 60)
        assert await fleet.acquire("c") is failing
        failing.answered(1)
        assert not failing.resting

    run(main())


def test_a_request_goes_to_servers_that_it_was_not_asked_from_yet():
    async def main():
        fleet = Fleet(asyncio.Event())
        members = [member_with(9, seconds=number + 1) for number in range(3)]
        for member in members:
            fleet.add(member)
        first, second, third = members
        assert await fleet.acquire("a", first, {first}) is second
        assert await fleet.acquire("a", second, {first, second}) is third
        assert await fleet.acquire("a", third, set(members)) is first
        assert not fleet.has_other(third, {first, second})

    run(main())


def test_a_request_that_failed_goes_to_another_server_before_those_that_wait():
    async def main():
        fleet = Fleet(asyncio.Event())
        first, second = member_with(1), member_with(1)
        fleet.add(first)
        fleet.add(second)
        assert await fleet.acquire("a") is first
        assert await fleet.acquire("b") is second
        waiting = asyncio.create_task(fleet.acquire("c"))
        await asyncio.sleep(0)
        again = asyncio.create_task(fleet.acquire("a", first))
        await asyncio.sleep(0)
        fleet.release(second)
        assert await again is second
        fleet.release(first)
        assert await waiting is first

    run(main())


def test_what_waits_for_a_server_that_is_given_up_goes_elsewhere_and_the_last_one_ends_the_run():
    async def main():
        fleet = Fleet(asyncio.Event())
        ended = []
        fleet.when_gone = lambda: ended.append(fleet.gone)
        first, second = member_with(1), member_with(3)
        fleet.add(first)
        assert await fleet.acquire("a") is first
        waiting = [asyncio.create_task(fleet.acquire("a")) for _ in range(2)]
        await asyncio.sleep(0)
        fleet.add(second)
        first.outage.give_up("it is dead")
        assert await asyncio.gather(*waiting) == [second, second]
        assert (fleet.members, fleet.over, first.gone.is_set()) == ((second,), False, True)
        late = asyncio.create_task(fleet.acquire("b", second))
        assert await late is second
        last = asyncio.create_task(fleet.acquire("c"))
        await asyncio.sleep(0)
        second.outage.give_up("so is this")
        assert await last is None
        assert ended == ["so is this"]
        assert await fleet.acquire("d") is None

    run(main())


def test_a_stopped_run_gives_no_more_slots():
    async def main():
        stop = asyncio.Event()
        fleet = Fleet(stop)
        member = member_with(1)
        fleet.add(member)
        await fleet.acquire("a")
        waiting = asyncio.create_task(fleet.acquire("b"))
        await asyncio.sleep(0)
        stop.set()
        fleet.release(member)
        return await waiting

    assert run(main()) is None


def test_summaries_of_processes_that_ask_the_same_servers_become_one():
    async def main():
        summaries = []
        for _ in range(2):
            fleet = Fleet(asyncio.Event())
            fleet.add(member_with(4, seconds=1))
            summaries.append(fleet.summary())
        return merged_summary(summaries)

    found = run(main())
    assert found["concurrency"] == {"mode": "fixed", "limit": 8}
    assert found["servers"]["http://127.0.0.1:9/v1"]["requests"] == 2


def test_addresses_come_from_flags_and_a_file_each_once(tmp_path):
    file = tmp_path / "servers.txt"
    file.write_text("# ours\nhost:8000\n\nhost:8001/v1/  # the other\nhost:8000/v1\n")
    assert read_addresses(["http://host:8001"], file) == [
        "http://host:8001/v1", "http://host:8000/v1",
    ]  # fmt: skip
    file.write_text("host:8000\nhttp://me:secret@host\n")
    with pytest.raises(ValueError, match=r"servers.txt:2: the address .* must not hold a name"):
        read_addresses([], file)
    file.write_text("host:8000\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"servers.txt: not UTF-8"):
        read_addresses([], file)
    # With the mark of an editor at its start, and with a line that is half written.
    file.write_text("host:8000\n", encoding="utf-8-sig")
    assert read_addresses([], file) == ["http://host:8000/v1"]
    file.write_text("host:8000\nhttp://host:80a")
    with pytest.raises(
        ValueError, match=r"servers.txt:2: 'http://host:80a' is no address of a ser"
    ):
        read_addresses([], file)
