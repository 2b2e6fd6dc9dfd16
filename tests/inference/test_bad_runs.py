"""Runs whose responses should not be used: they end with an error that says why."""

import pytest
from cot_reward.errors import UserError
from helpers.rows import raw_row


def test_bad_records_above_the_bound_stop_the_run_before_it_asks(world, server):
    world.rows += [{"prompt": "no images"}]
    with pytest.raises(UserError, match=r"1 of 4 records are bad, more than --max-bad-rows 0\.01"):
        world.call("--num-samples", 1, "--max-bad-rows", 0.01)
    assert server.log() == []
    assert world.call("--num-samples", 1, "--max-bad-rows", 0.25) == 0


def test_most_answers_unread_is_an_error_with_their_ends(world, server, capfd):
    server.configure(faults=[{"kind": "text", "text": "Image 1 wins. \x9bIt is better."}])
    assert world.call("--num-samples", 2) == 3
    told = capfd.readouterr().err
    assert "0 of 12 responses have an answer that can be read, less than --min-parsed 0.5" in told
    assert "no --template was given" in told
    assert "12 x '...Image 1 wins. ?It is better.'" in told
    assert world.summary["account"]["judged"] == 12
    assert world.call("--num-samples", 2, "--min-parsed", 0) == 0


@pytest.mark.parametrize("reason", ["eos", "end_turn", "stop_sequence", "STOP"])
def test_words_of_other_servers_for_a_finished_text(world, server, reason):
    text = "<think>Total: Image 1: 9, Image 2: 6</think><answer>Image 1 is better</answer>"
    server.configure(faults=[{"kind": "text", "text": text, "reason": reason}])
    assert world.call("--num-samples", 2) == 0
    assert world.summary["well_formed"]["share"] == 1


@pytest.mark.parametrize(
    ("reason", "end"), [("max_tokens", "</answer>'"), ("unheard_of", "</answer> [unheard_of]'")]
)
def test_texts_that_did_not_end_by_themselves_are_not_used(world, server, capfd, reason, end):
    text = "<think>Total: Image 1: 9, Image 2: 6</think><answer>Image 1 is better</answer>"
    server.configure(faults=[{"kind": "text", "text": text, "reason": reason}])
    assert world.call("--num-samples", 2) == 3
    assert world.summary["files"]["unusable"] == 12
    assert end in capfd.readouterr().err


def test_a_run_without_answers_ends_early(world, server, capfd):
    world.rows = [raw_row(f"caption {n}", ["0a.png", "1b.png"]) for n in range(400)]
    server.configure(faults=[{"kind": "text", "text": "I cannot see images."}])
    assert world.call("--num-samples", 1, "--concurrency", 4) == 3
    assert "stopped early; with --min-parsed 0 the same command continues" in capfd.readouterr().err
    assert 200 <= len(server.log()) < 300
    assert not (world.out / "summary.json").exists()
    server.configure()
    assert world.call("--num-samples", 1, "--min-parsed", 0) == 0
    assert world.summary["account"] == {"expected": 800, "judged": 800, "failed": 0, "not_asked": 0}


def test_many_failures_are_an_error(world, server, capfd):
    fault = {"kind": "status", "status": 400, "caption": "caption 1"}
    server.configure(faults=[fault])
    assert world.call("--num-samples", 1, "--max-failed", 0.1) == 3
    assert "2 of 6 responses failed, more than --max-failed 0.1" in capfd.readouterr().err


def test_samples_that_are_one_text_are_told_of(world, server, capfd):
    text = "<think>Total: Image 1: 9, Image 2: 6</think><answer>Image 1 is better</answer>"
    server.configure(faults=[{"kind": "text", "text": text}])
    assert world.call("--num-samples", 4) == 0
    assert "18 of 18 further samples of a comparison are the text of an earlier one" in (
        capfd.readouterr().err
    )
    assert world.summary["repeated"]["share"] == 1
    server.configure()
    world.out = world.out.with_name("other")
    assert world.call("--num-samples", 4, "--out", world.out) == 0
    assert "further samples" not in capfd.readouterr().err
    assert world.summary["repeated"]["count"] == 0


def test_texts_that_a_parser_has_split_are_whole_again(world, server, capfd):
    fault = {"kind": "split", "content": "<answer>Image 1 is better</answer>",
             "reasoning": "Total: Image 1: 9, Image 2: 6"}  # fmt: skip
    server.configure(faults=[fault])
    assert world.call("--num-samples", 2) == 0
    whole = f"<think>{fault['reasoning']}</think>{fault['content']}"
    assert {row["conversations"][1]["value"] for row in world.judged} == {whole}
    assert world.summary["restored"] == {"reasoning_field": 12}
    assert "12 texts that the server's reasoning parser had split" in capfd.readouterr().out
    assert all(line["restored"] == "reasoning_field" for line in world.read("journal"))
