"""RewardModel against a server in another process that looks at what it is shown."""

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from cot_reward import Failure, Judgement, RewardModel
from cot_reward.errors import UserError
from helpers.pictures import grey
from helpers.server import MockServer
from hypothesis import given, settings
from hypothesis import strategies as st

CAPTION = "a cat"


@contextmanager
def of_task(server, task, **more):
    with RewardModel(server.url, task=task, **more) as model:
        yield model


# Task -> worse candidate, better candidate, context.
CASES = {
    "image_generation": (grey(50), grey(200), ()),
    "image_editing": (grey(50), grey(200), grey(255)),
    "video_generation": ([grey(10), grey(90)], [grey(80), grey(120)], ()),
    "image_understanding": ("no", "a longer answer", grey(90)),
    "video_understanding": ("no", "a longer answer", [grey(90), grey(20)]),
}


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("orders", ["given", "swapped", "both"])
def test_every_order_names_the_right_candidate(sees, task, orders):
    worse, better, context = CASES[task]
    with of_task(sees, task, orders=orders) as model:
        first = model.compare(CAPTION, better, worse, context)
        second = model.compare(CAPTION, worse, better, context)
        ranking = model.rank(CAPTION, [worse, better], context)
    assert (first.answer, first.probability, first.confidence, first.consistent) == (1, 1, 1, True)
    assert (second.answer, second.probability, second.confidence) == (2, 0, 1)
    assert ranking.order == (1, 0)
    assert ranking.best == 1
    for found, best in ((first, 0), (second, 1)):
        assert {vote.order for vote in found.votes} == (
            {"given", "swapped"} if orders == "both" else {orders}
        )
        assert all(vote.answer == best + 1 for vote in found.votes)
        for both in (*found.scores.values(), found.totals):
            assert both[best] > both[1 - best]
        assert found.scores["Light"] == found.totals
    if orders == "both":
        assert first == second.swapped()


@settings(max_examples=15)
# Four apart: the server's scores have one decimal, in which nearer pictures can be equal.
@given(st.lists(st.integers(0, 63).map(lambda step: 4 * step), min_size=2, max_size=5, unique=True))
def test_a_ranking_is_by_what_the_server_prefers(lights):
    ranking = SHARED["model"].rank(CAPTION, [grey(light) for light in lights])
    assert list(ranking.order) == sorted(range(len(lights)), key=lambda i: -lights[i])
    assert ranking.win_rates[ranking.best] == 1
    for i, j, found in ranking.comparisons:
        assert found.answer == (1 if lights[i] > lights[j] else 2)
        assert (found.totals[0] > found.totals[1]) == (lights[i] > lights[j])


SHARED = {}


@pytest.fixture(scope="module", autouse=True)
def shared_model():
    """A server and a model for the test that hypothesis calls often."""
    with MockServer() as server:
        server.configure(sees=True)
        with RewardModel(server.url) as SHARED["model"]:
            yield


def test_a_server_that_leans_to_a_position(server):
    server.configure(sees=True, lean=1)
    with RewardModel(server.url) as model:
        found = model.compare(CAPTION, grey(50), grey(200))
        ranking = model.rank(CAPTION, [grey(50), grey(200), grey(100)])
    assert (found.answer, found.probability, found.confidence, found.consistent) == (
        0, 0.5, 0.5, False,
    )  # fmt: skip
    assert [vote.answer for vote in found.votes] == [1, 2]
    assert ranking.strengths == pytest.approx((0, 0, 0))
    with RewardModel(server.url, orders="given") as model:
        assert model.compare(CAPTION, grey(50), grey(200)).answer == 1


def test_one_bad_item_does_not_cost_its_batch(sees, model):
    released = memoryview(b"x")
    released.release()
    a, b = grey(1), grey(9)
    found = model.compare_many(
        [(CAPTION, a, b), ("\ud800", a, b), (CAPTION, released, b), (CAPTION, b, a)]
    )
    assert [one.reason for one in found if not one] == ["bad_text", "corrupt"]
    assert [one.answer for one in found if one] == [2, 1]


def test_questions_that_cannot_be_asked_are_failures(sees, model):
    a, b = grey(1), grey(9)
    items = [(CAPTION, a, a), ("", a, b), ("<image> x", a, b), ("<|im_end|>", a, b),
             (CAPTION, [a, b], b), (CAPTION, [], b), (CAPTION, a, b, a)]  # fmt: skip
    assert [one.reason for one in model.compare_many(items)] == [
        "same_candidates", "bad_text", "bad_text", "bad_text",
        "bad_media", "bad_media", "bad_media",
    ]  # fmt: skip
    with of_task(sees, "video_generation") as videos:
        assert videos.compare(CAPTION, [a, b], [a]).reason == "bad_media"
        ranking = videos.rank(CAPTION, [[a, a], [b, b], [a]])
        assert ranking.order == (1, 0, 2)
        assert ranking.failures[2].reason == "bad_media"
    with of_task(sees, "image_editing") as edits:
        assert edits.compare(CAPTION, a, b).reason == "bad_media"
        assert edits.compare(CAPTION, a, b, b"x").reason == "not_an_image"
        assert set(edits.rank(CAPTION, [a, b], b"x").failures) == {0, 1}
    with of_task(sees, "image_understanding") as answers:
        assert answers.compare(CAPTION, "yes", " ", a).reason == "bad_text"
        assert answers.compare(CAPTION, "yes", "<|im_end|>", a).reason == "bad_text"
    assert sees.log()
    assert all(entry["caption"] == CAPTION for entry in sees.log() if entry["images"])


def test_wrong_arguments_raise(sees, model):
    for call in (
        lambda: model.compare(CAPTION, 3, grey(1)),
        lambda: model.compare(None, grey(2), grey(1)),
        lambda: model.rank(CAPTION, grey(1)),
        lambda: model.compare_many([(CAPTION, grey(1), object())]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="parts"):
        model.compare_many([(CAPTION, grey(1))])
    with pytest.raises(ValueError, match="at least 3"):
        model.rank(CAPTION, [grey(n) for n in range(4)], max_comparisons=2)
    with of_task(sees, "image_understanding") as answers, pytest.raises(TypeError, match="answers"):
        answers.compare(CAPTION, grey(1), grey(2), grey(3))
    assert sees.log() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "image_generatoin"}, {"votes": 0}, {"votes": 2, "temperature": 0}, {"orders": "x"},
        {"concurrency": 0}, {"concurrency": "many"}, {"base_url": []}, {"form": "yaml"},
        {"base_url": "http://name:word@host/v1"}, {"timeout": 0}, {"temperature": float("nan")},
        {"sampling_defaults": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        RewardModel(**wrong)


def test_a_template_that_cannot_be_used(tmp_path, server):
    with pytest.raises(UserError, match="cannot be read"):
        RewardModel(template=tmp_path / "none.txt")
    (tmp_path / "template.txt").write_text("no field")
    with pytest.raises(UserError, match="caption"):
        RewardModel(template=tmp_path / "template.txt")
    # The model's folder says that it was trained on another prompt.
    (tmp_path / "template.txt").write_text("Two images. [{caption}]")
    server.configure(root=str(tmp_path))
    with pytest.raises(UserError, match="another prompt"), RewardModel(server.url):
        pass
    with RewardModel(server.url, template=tmp_path / "template.txt") as model:
        assert "Two images" in model.template


def test_votes_are_counted_in_both_orders(server):
    server.configure()
    with RewardModel(server.url, votes=8, max_tokens=77) as model:
        found = model.compare(CAPTION, grey(1), grey(2))
    log = server.log()
    assert [(entry["n"], entry["temperature"], entry["max_tokens"]) for entry in log] == [
        (8, 1.0, 77)
    ] * 2
    assert len(found.votes) == len(found.texts) == 16
    # Of eight texts in a row of the mock's kinds six can be read, three of them for each position.
    assert found.readable == 12
    by_verdict = [vote.verdict for vote in found.votes]
    assert (by_verdict.count("unparsed"), by_verdict.count("truncated")) == (2, 2)
    shares = [
        [vote.answer for vote in found.votes if vote.order == order and vote.answer]
        for order in ("given", "swapped")
    ]
    wanted = sum(one.count(1) / len(one) for one in shares) / 2
    assert found.probability == pytest.approx(wanted)
    assert found.weight == 6
    assert (found.prompt_tokens, found.completion_tokens) == (200, 800)
    assert Judgement.from_dict(found.as_dict()) == found


def test_texts_that_cannot_be_read(server):
    for fault, reason in (
        ({"kind": "text", "text": "I like both."}, "unparsed"),
        ({"kind": "text", "reason": "length"}, "truncated"),
    ):
        server.configure(faults=[fault])
        with RewardModel(server.url) as model:
            found = model.compare(CAPTION, grey(1), grey(2))
            ranking = model.rank(CAPTION, [grey(1), grey(2)])
        assert found.reason == reason
        assert len(found.votes) == 2
        assert Failure.from_dict(found.as_dict()) == found
        assert ranking.best is None
        assert {one.reason for one in ranking.failures.values()} == {reason}


def test_a_request_that_fails_is_a_failure_of_its_comparison(server):
    fault = {"kind": "status", "status": 400, "caption": "bad"}
    server.configure(sees=True, faults=[fault, {"kind": "first_only", "caption": "single"}])
    with RewardModel(server.url, votes=3) as model:
        found = model.compare_many([(text, grey(9), grey(2)) for text in ("bad", "fine", "single")])
    assert found[0].reason == "refused"
    assert found[1].answer == 1
    # The server ignores n: each vote is a request of its own.
    assert len(found[2].votes) == 6
    assert found[2].answer == 1


def test_one_order_that_fails_is_no_judgement_by_the_other(server):
    server.configure(sees=True, lean=1, faults=[{"kind": "status", "status": 400, "times": 1}])
    with RewardModel(server.url, concurrency=1) as model:
        assert model.compare(CAPTION, grey(9), grey(2)).reason == "refused"


def test_several_servers(sees):
    with MockServer() as other:
        other.configure(sees=True)
        with RewardModel([sees.url, other.url], concurrency=2) as model:
            found = model.compare_many([(f"cat {n}", grey(9), grey(2)) for n in range(12)])
        assert all(one.answer == 1 for one in found)
        assert len(sees.log()) + len(other.log()) == 24
        assert min(len(sees.log()), len(other.log())) > 0


def test_async_twins_and_a_running_loop(sees):
    async def use():
        async with RewardModel(sees.url) as model:
            one, many, ranking, rankings = await asyncio.gather(
                model.acompare(CAPTION, grey(9), grey(2)),
                model.acompare_many([(CAPTION, grey(2), grey(9))] * 3),
                model.arank(CAPTION, [grey(1), grey(9), grey(5)]),
                model.arank_many([(CAPTION, [grey(1), grey(9)]), (CAPTION, [grey(9), grey(1)])]),
            )
            # A notebook's cell runs in a loop, too.
            assert model.compare(CAPTION, grey(9), grey(2)) == one
        return (
            one.answer,
            [found.answer for found in many],
            ranking.best,
            [r.best for r in rankings],
        )

    # Twice: every asyncio.run has another loop.
    assert asyncio.run(use()) == asyncio.run(use()) == (1, [2, 2, 2], 1, [1, 0])


def test_threads_share_a_model(model):
    found = {}

    def use(n):
        found[n] = model.compare(f"cat {n}", grey(n), grey(200)).answer

    threads = [threading.Thread(target=use, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(16), 2)


def test_twins_and_a_bounded_schedule(sees, model):
    pictures = [grey(20 * n) for n in range(8)]
    ranking = model.rank(CAPTION, [*pictures, grey(140), grey(0)], max_comparisons=12)
    assert len(ranking.comparisons) == 12
    assert ranking.strengths[8] == ranking.strengths[7]
    assert ranking.strengths[9] == ranking.strengths[0]
    assert {ranking.order[0], ranking.order[1]} == {7, 8}
    assert all(i < 8 and j < 8 for i, j, _ in ranking.comparisons)


def test_a_candidate_like_the_reference_is_even_with_it(sees, model):
    ranking = model.rank(CAPTION, [grey(50), grey(200), grey(90)], reference=grey(200))
    assert ranking.win_rates == (0, 0.5, 0)


def test_a_reference(sees, model):
    ranking = model.rank(
        CAPTION, [grey(10), grey(100), grey(200), Path("none.png")], reference=grey(100)
    )
    assert [(i, j) for i, j, _ in ranking.comparisons] == [(0, -1), (2, -1)]
    assert ranking.order == (2, 1, 0, 3)
    assert ranking.win_rates[:3] == (0, 0.5, 1)
    assert ranking.strengths[1] == 0
    assert ranking.low[2] < 0 < ranking.strengths[2] < ranking.high[2]
    assert set(model.rank(CAPTION, [grey(1)], reference=b"x").failures) == {0}


def test_one_and_no_candidate(model):
    alone = model.rank(CAPTION, [grey(1)])
    assert (alone.best, alone.strengths, alone.comparisons) == (0, (0,), ())
    nobody = model.rank(CAPTION, [])
    assert (nobody.best, nobody.order) == (None, ())
    assert model.rank(CAPTION, [b"x"]).best is None


def test_a_key_is_in_no_message(sees, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with RewardModel(sees.url) as model:
        assert "secret" not in repr(model) + repr(model.settings) + repr(model.served)
