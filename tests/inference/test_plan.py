"""What a run does once: judge a response, render the prompt of a request."""

import sys
from collections import Counter

import pytest
from cot_reward.judge import judge
from cot_reward.tasks.prompts import render


@pytest.fixture
def calls(monkeypatch):
    """How often responses are judged and prompts rendered, in whatever module."""
    counts = Counter()

    def count(function):
        def counted(*arguments, **options):
            counts[function.__name__] += 1
            return function(*arguments, **options)

        for name, module in list(sys.modules.items()):
            if name.startswith("cot_reward") and vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, counted)

    count(judge)
    count(render)
    return counts


def test_a_response_is_judged_once_and_a_prompt_rendered_once_a_request(world, calls):
    flags = ["--num-samples", 8]
    assert world.call(*flags) == 0
    rows, summary = world.judged, world.summary
    # 3 comparisons, 2 orders: a request for each, and the rows of each.
    assert calls == {"judge": 48, "render": 6 + 6}
    calls.clear()
    assert world.call(*flags) == 0
    assert calls == {"judge": 48, "render": 6}
    assert world.judged == rows
    for name in ("verdicts", "coherence", "mismatch", "accuracy", "files"):
        assert world.summary[name] == summary[name]


def test_responses_that_a_resumed_run_does_not_ask_for_are_kept_and_not_judged(world, calls):
    assert world.call("--num-samples", 8) == 0
    rows = world.judged
    for flags, judged in (
        (["--num-samples", 8, "--limit", 1], 16),
        (["--num-samples", 3, "--orders", "swapped"], 9),
    ):
        calls.clear()
        assert world.call(*flags) == 0
        assert calls["judge"] == len(world.judged) == judged
    calls.clear()
    assert world.call("--num-samples", 9, "--dry-run") == 0
    assert calls["judge"] == 0
    calls.clear()
    assert world.call("--num-samples", 8) == 0
    assert calls["judge"] == 48
    assert world.judged == rows


def test_a_mismatch_of_scores_and_summands_is_counted_in_every_start(world, server):
    text = "<think>Style: Image 1 (9/10); Image 2 (6/10)\nTotal score: Image 1: 5+6=11, "
    text += "Image 2: 4+3=7</think><answer>Image 1 is better</answer>"
    server.configure(faults=[{"caption": "caption 0", "kind": "text", "text": text}])
    for _ in range(2):
        assert world.call("--num-samples", 2) == 0
        formed = [r for r in world.judged if r["id"] == world.key(0) and r["answer"]]
        assert world.summary["mismatch"] == len(formed) > 0
