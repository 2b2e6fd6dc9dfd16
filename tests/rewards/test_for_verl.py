"""The reward for verl, called as its reward manager calls it (verl 0.9.1, `naive.py`)."""

import asyncio
import inspect

import pytest
from helpers.rewards import load_example
from helpers.server import MockServer
from helpers.service import Service, png

WINS = "<think>seen</think><answer>Answer 1 is better</answer>"


@pytest.fixture(scope="module")
def behind():
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def service(behind):
    flags = ("--task", "image_understanding", "--orders", "given", "--max-attempts", 1)
    with Service(behind.url, *flags) as running:
        yield running


@pytest.fixture
def score(monkeypatch, service, tmp_path):
    monkeypatch.setenv("REWARD_SERVICE", service.url)
    (tmp_path / "a.png").write_bytes(png())
    compute_score = load_example("for_verl").compute_score
    # verl awaits coroutine functions, and runs others in threads.
    assert inspect.iscoroutinefunction(compute_score)

    def call(response, reference="a reference"):
        # verl adds fields of its own to extra_info, and these names to a call with a reward model.
        extra = {
            "question": "what is it?", "images": [str(tmp_path / "a.png")], "num_turns": 2,
            "rollout_reward_scores": {},
        }  # fmt: skip
        return asyncio.run(
            compute_score(
                data_source="x", solution_str=response, ground_truth=reference, extra_info=extra,
                reward_router_address=None, reward_model_tokenizer=None,
            )
        )  # fmt: skip

    return call


def test_a_response_is_compared_with_the_reference(behind, score):
    behind.configure(faults=[{"kind": "text", "text": WINS, "reason": "stop"}])
    assert score("a response") == {"score": 1.0, "reward_failed": 0.0}
    (entry,) = behind.log()
    assert len(entry["images"]) == 1
    assert "Answer 1: [a response]" in entry["text"]
    assert "Answer 2: [a reference]" in entry["text"]


def test_what_has_no_reward_has_the_same_fields(behind, score):
    behind.configure(faults=[{"kind": "text", "text": "nothing", "reason": "stop"}])
    assert score("a response") == {"score": 0.5, "reward_failed": 1.0}
    assert score("the same", "the same") == {"score": 0.5, "reward_failed": 1.0}
    assert score(" ") == {"score": 0.0, "reward_failed": 1.0}


def test_a_service_that_cannot_be_used_ends_the_run(monkeypatch, service, tmp_path):
    monkeypatch.setenv("REWARD_SERVICE", service.url + "/elsewhere")
    compute_score = load_example("for_verl").compute_score
    with pytest.raises(RuntimeError, match="there are POST /compare"):
        asyncio.run(compute_score("x", "a", "b", {"question": "?"}))
