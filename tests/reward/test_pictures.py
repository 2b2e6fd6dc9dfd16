"""What callers give up is not worked on, and takes nothing from others."""

import asyncio
import threading

import pytest
from cot_reward.reward import pictures
from cot_reward.reward.pictures import Pictures
from helpers.service import png


@pytest.fixture
def gate(monkeypatch):
    """Encoding waits until the gate is opened."""
    opened, encode = threading.Event(), pictures.to_send

    def waits(*arguments):
        assert opened.wait(30)
        return encode(*arguments)

    monkeypatch.setattr(pictures, "to_send", waits)
    yield opened
    opened.set()


def test_pictures_of_callers_that_have_gone_are_let_go(gate):
    async def run():
        prepared = Pictures(10_000, threads=1)
        busy = asyncio.create_task(prepared.shown(png(0)))
        gone = [asyncio.create_task(prepared.shown(png(seed))) for seed in range(1, 20)]
        await asyncio.sleep(0.05)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        gate.set()
        await busy
        last = await prepared.shown(png(99))
        prepared.close()
        return prepared.encoded, last

    encoded, last = asyncio.run(run())
    assert encoded == 2
    assert last.url.startswith(b'"data:image/png')


def test_a_picture_that_others_wait_for_is_not_given_up(gate):
    async def run():
        prepared = Pictures(10_000, threads=2)
        first, second = (asyncio.create_task(prepared.shown(png(0))) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gate.set()
        shown = await second
        # A later caller gets what was encoded.
        assert await prepared.shown(png(0)) is shown
        prepared.close()
        return prepared.encoded

    assert asyncio.run(run()) == 1
