"""Reward for GRPO in TRL 1.16: the share of a prompt's other completions that one is better than.

    REWARD_URL=http://127.0.0.1:8000/v1 ...    GRPOTrainer(model, reward_funcs=win_rate, ...)

A process holds whole groups. `images`: what a question is about. `draw`: a completion's picture.
"""

import os

from cot_reward import RewardModel

TASK, TEMPLATE = os.environ.get("REWARD_TASK"), os.environ.get("REWARD_TEMPLATE")
MODEL = RewardModel(os.environ["REWARD_URL"], task=TASK or "image_understanding", template=TEMPLATE)


def text_of(turns):
    content = turns if isinstance(turns, str) else turns[-1]["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


async def win_rate(prompts, completions, images=None, log_metric=None, draw=text_of, **columns):
    groups, rewards = {}, [0.5] * len(prompts)
    for place, prompt in enumerate(prompts):
        shown = (images and images[place]) or []
        key = repr(prompt), *((one.mode, one.size, one.tobytes()) for one in shown)
        groups.setdefault(key, (text_of(prompt), [], shown, []))[1].append(draw(completions[place]))
        groups[key][3].append(place)
    rankings = await MODEL.arank_many([group[:3] for group in groups.values()])
    asked = [one for found in rankings for *_, one in found.comparisons]
    failed = [one for one in asked if not one]
    if len(failed) > len(asked) / 2:
        raise RuntimeError(f"{len(failed)} of {len(asked)} comparisons failed: {failed[0].detail}")
    log_metric and log_metric("reward_failed", len(failed) / max(1, len(asked)))
    for (*_, places), found in zip(groups.values(), rankings, strict=True):
        for number, place in enumerate(places):
            rewards[place] = found.win_rates[number]
            if number in found.failures:  # a judge's failure has the mean of a group
                rewards[place] = 0.0 if found.failures[number].reason == "bad_text" else 0.5
    return rewards
