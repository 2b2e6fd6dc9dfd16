"""Reward for GRPO in TRL 1.16: the share of a prompt's other completions that one is better than.

    REWARD_URL=http://127.0.0.1:8000/v1 ...    GRPOTrainer(model, reward_funcs=win_rate, ...)

A process must hold whole groups. The column `images` has what a question is about.
"""

import os

from cot_reward import RewardModel

TASK, TEMPLATE = os.environ.get("REWARD_TASK"), os.environ.get("REWARD_TEMPLATE")
MODEL = RewardModel(os.environ["REWARD_URL"], task=TASK or "image_understanding", template=TEMPLATE)


def text_of(turns):
    content = turns if isinstance(turns, str) else turns[-1]["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


async def win_rate(prompts, completions, images=None, log_metric=None, draw=text_of, **columns):
    """draw: of a policy whose completion stands for a picture, its picture (PIL or bytes)."""
    groups, rewards, failed = {}, [], {}
    for place, prompt in enumerate(prompts):
        shown = (images and images[place]) or []
        key = text_of(prompt), *(picture.tobytes() for picture in shown)
        groups.setdefault(key, (text_of(prompt), [], shown, []))[1].append(draw(completions[place]))
        groups[key][3].append(place)
    rankings = await MODEL.arank_many([group[:3] for group in groups.values()])
    for (*_, places), found in zip(groups.values(), rankings, strict=True):
        failed |= {places[number]: failure for number, failure in found.failures.items()}
        rewards += zip(places, found.win_rates, strict=True)
    unknown = [one for one in failed.values() if one.reason != "bad_text"]
    if len(unknown) > len(prompts) / 2:
        raise RuntimeError(f"{len(unknown)} of {len(prompts)} have no reward: {unknown[0]}")
    log_metric and log_metric("reward_failed", len(failed) / len(prompts))
    # A judge's failure has the mean of a group.
    lost = {place: 0.0 if one.reason == "bad_text" else 0.5 for place, one in failed.items()}
    return [lost.get(place, rate) for place, rate in sorted(rewards)]
