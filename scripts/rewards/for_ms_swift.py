"""Reward for GRPO in ms-swift 4.6: the share of a prompt's other completions one is better than.

    swift rlhf --external_plugins scripts/rewards/for_ms_swift.py --reward_funcs cot_reward ...

REWARD_SERVICE is scripts/serve_reward.py --task image_understanding. A process holds whole groups.
"""

import asyncio
import os
from base64 import b64encode as b64
from pathlib import Path

from aiohttp import ClientSession, TCPConnector
from swift.rewards import AsyncORM, orms

URL = os.environ.get("REWARD_SERVICE", "http://127.0.0.1:8100") + "/rank"
HEADERS = {"Authorization": f"Bearer {os.environ.get('COT_REWARD_SERVICE_KEY', 'none')}"}


class WinRate(AsyncORM):
    async def __call__(self, completions, messages, prompt_id, images=None, **columns):
        async def rank(session, places):
            shown = (images and images[places[0]]) or []
            context = [b64(i["bytes"] or Path(i["path"]).read_bytes()).decode() for i in shown]
            body = {"context": context, "candidates": [completions[place] for place in places]}
            body["prompt"] = messages[places[0]][-2]["content"].replace("<image>", "")
            async with session.post(URL, json=body, raise_for_status=True) as answer:
                found = await answer.json()
            for at, failure in found["failures"].items():  # 0.5, a group's mean, has no effect
                found["win_rates"][int(at)] = 0.0 if failure["reason"] == "bad_text" else 0.5
            return zip(places, found["win_rates"], strict=True)

        groups = [[i for i, at in enumerate(prompt_id) if at == one] for one in set(prompt_id)]
        async with ClientSession(headers=HEADERS, connector=TCPConnector(limit=16)) as session:
            ranked = await asyncio.gather(*(rank(session, group) for group in groups))
        return [rate for _, rate in sorted(pair for pairs in ranked for pair in pairs)]


orms["cot_reward"] = WinRate
