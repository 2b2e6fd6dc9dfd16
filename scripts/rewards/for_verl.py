"""Reward for verl 0.9: the probability that a response is better than the row's reference answer.

    reward.custom_reward_function.path=scripts/rewards/for_verl.py

REWARD_SERVICE is the address of scripts/serve_reward.py, started with --task image_understanding.
A row has its `reward_model.ground_truth`, and in `extra_info` its `question` and files `images`.
"""

import asyncio
import base64
import os
from pathlib import Path

import aiohttp

URL = os.environ.get("REWARD_SERVICE", "http://127.0.0.1:8100")
KEY = os.environ.get("COT_REWARD_SERVICE_KEY", "none")


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **others):
    body = {
        "prompt": extra_info["question"], "candidates": [solution_str, ground_truth],
        "context": [base64.b64encode(Path(file).read_bytes()).decode()
                    for file in extra_info.get("images", ())],
    }  # fmt: skip
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        for _ in range(10):
            async with session.post(f"{URL}/compare", json=body) as answer:
                found = await answer.json()
                if answer.status == 200:
                    return {"score": found["probability"], "reward_failed": 0.0}
                if answer.status in (422, 502):  # this response alone: its fault, or the judge's
                    bad = found["error"]["type"] == "bad_text"
                    return {"score": 0.0 if bad else 0.5, "reward_failed": 1.0}
                if answer.status != 503:
                    break
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    raise RuntimeError(f"{URL}: {found['error']['message']}")
