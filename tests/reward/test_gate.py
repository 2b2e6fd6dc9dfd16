"""The gate: never more inside than its bound, in turn, and nobody's place is lost."""

import asyncio
import random

from cot_reward.reward.gate import Gate
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 6), st.lists(st.integers(1, 8), min_size=1, max_size=30), st.integers(0, 9))
def test_weights_inside_stay_within_the_bound(bound, weights, seed):
    draw = random.Random(seed)

    async def run():
        gate, inside, done = Gate(lambda: bound), [], []

        async def enter(number, weight):
            async with gate.through(weight):
                inside.append(weight)
                assert sum(inside) <= bound or len(inside) == 1
                try:
                    for _ in range(draw.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    inside.remove(weight)
            done.append(number)

        tasks = [asyncio.create_task(enter(*one)) for one in enumerate(weights)]
        given_up = {n for n in range(len(tasks)) if draw.random() < 0.3}
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)
        for number in given_up:
            tasks[number].cancel()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert {type(one) for one in ended} <= {type(None), asyncio.CancelledError}
        assert set(done) >= set(range(len(tasks))) - given_up
        # Everybody has left.
        async with gate.through(bound):
            assert inside == []

    asyncio.run(run())


def test_a_bound_that_grows_lets_the_next_in():
    async def run():
        bound = 1
        gate = Gate(lambda: bound)
        entered = []

        async def enter(number, leave):
            async with gate.through():
                entered.append(number)
                await leave.wait()

        leaves = [asyncio.Event() for _ in range(4)]
        tasks = [asyncio.create_task(enter(n, leave)) for n, leave in enumerate(leaves)]
        await asyncio.sleep(0.01)
        assert entered == [0]
        bound = 3
        leaves[0].set()
        await asyncio.sleep(0.01)
        assert entered == [0, 1, 2, 3]
        for leave in leaves:
            leave.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
