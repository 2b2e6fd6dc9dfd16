"""Runs with --until against a real HTTP server, beside runs that ask for every sample."""

import json
import signal
from collections import Counter, defaultdict

import pytest
from cot_reward.client.flow import LATER
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.plan import Run, request_seed
from cot_reward.inference.rounds import Rounds
from cot_reward.inference.settings import InferenceSettings
from cot_reward.records import ORDERS
from cot_reward.settings import parse
from helpers.client_world import SCRIPT, World, unit
from helpers.rows import raw_row

UNTIL = ["--until", "right,wrong"]
TRUSTED = ("coherent", "no_totals")


@pytest.fixture
def many(tmp_path, server):
    """Twelve comparisons, so that orders settle after every number of rounds."""
    return World(tmp_path, server, count=12)


def call(world: World, *flags: object) -> int:
    return world.call(*flags, "--out", world.out)


def rows_of(world: World, name: str, *flags: object) -> dict[tuple[str, str, int], dict]:
    """The judged rows of a run in a folder of its own, by their unit."""
    world.out = world.out.with_name(name)
    assert call(world, *flags) == 0
    rows = world.judged
    assert len({unit(row) for row in rows}) == len(rows)
    return {unit(row): row for row in rows}


def side(row: dict) -> str:
    usable = row["coherence"] in TRUSTED and row["verdict"] in ("correct", "incorrect")
    return row["verdict"] if usable else ""


def needed(fixed: dict, first: int, samples: int, wanted: set[str]) -> set[tuple[str, str, int]]:
    """The units that the rule asks for, out of the rows of a run that asked for all."""
    units = set()
    for key, order in {place[:2] for place in fixed}:
        found: set[str] = set()
        for start in range(0, samples, first):
            if wanted <= found:
                break
            asked = [(key, order, n) for n in range(start, min(start + first, samples))]
            units.update(asked)
            found |= {side(fixed[one]) for one in asked}
    return units


@pytest.mark.parametrize(
    ("until", "wanted", "first"),
    [
        ("right,wrong", {"correct", "incorrect"}, 2),
        ("right,wrong", {"correct", "incorrect"}, 3),
        ("right", {"correct"}, 1),
        ("wrong", {"incorrect"}, 1),
    ],
)
def test_the_units_are_those_of_fixed_sampling_that_the_rule_needs(
    many, server, until, wanted, first
):
    fixed = rows_of(many, "fixed", "--num-samples", 8)
    server.configure()
    asked = rows_of(many, "until", "--max-samples", 8, "--until", until, "--first", first)
    assert asked.keys() == needed(fixed, first, 8, wanted)
    assert len(asked) < len(fixed)
    assert asked == {place: fixed[place] for place in asked}
    for entry in server.log():
        assert entry["n"] in (first, 8 % first)
        offsets = {
            entry["seed"] - request_seed(0, many.key(n), order)
            for n in range(12) for order in ORDERS
        }  # fmt: skip
        assert offsets & set(range(0, 8, first))
    summary = many.summary
    assert summary["account"] == {
        "expected": 192, "judged": len(asked), "failed": 0, "not_asked": 0,
        "settled": 192 - len(asked),
    }  # fmt: skip
    assert sum(summary["files"].values()) == len(asked)


def test_the_summary_tells_pairs_and_tokens_and_takes_rates_from_the_first_samples(many, capfd):
    first = rows_of(many, "first", "--num-samples", 2)
    unbiased = many.summary
    asked = rows_of(many, "until", "--num-samples", 8, *UNTIL)
    summary = many.summary
    sides = defaultdict(set)
    for row in asked.values():
        sides[row["id"], row["order"]].add(side(row))
    pairs = [place for place, found in sides.items() if {"correct", "incorrect"} <= found]
    told = summary["usable_pairs"]
    assert (told["orders"]["count"], told["orders"]["of"]) == (len(pairs), 24)
    assert told["comparisons"] == len({key for key, _ in pairs})
    assert told["completion_tokens"] == 50 * len(asked) == summary["completion_tokens"]
    assert told["completion_tokens_per_pair"] == round(50 * len(asked) / len(pairs), 1)
    assert summary["metrics_of"].startswith("the first 2 samples of each order; later ones")
    for name in ("judged", "verdicts", "coherence", "accuracy", "well_formed", "coherent",
                 "answers_1", "survives_swap", "pass_rate_histogram", "mismatch"):  # fmt: skip
        assert summary[name] == unbiased[name], name
    assert len(asked) > len(first) == summary["judged"]
    printed = capfd.readouterr().out
    assert "of the first 2 samples of each order; later ones were asked because of these" in printed
    assert f"in {len(pairs)} of 24 orders" in printed
    # A run that asks for everything has no such words.
    assert "metrics_of" not in unbiased
    assert set(unbiased["account"]) == {"expected", "judged", "failed", "not_asked"}


def test_a_further_round_does_not_wait_for_the_first_round_of_the_others(world, server):
    world.rows = [raw_row(f"caption {n}", ["0a.png", "1b.png"]) for n in range(300)]
    server.configure(latency=0.01)
    assert call(world, "--num-samples", 6, *UNTIL, "--concurrency", 4) == 0
    seen, further = set(), []
    for entry in server.log():
        further.append(entry["seed"] - 2 in seen or entry["seed"] - 4 in seen)
        seen.add(entry["seed"])
    # Half of the requests before the last first round are further rounds already.
    last_first = max(n for n, is_further in enumerate(further) if not is_further)
    assert sum(further[: last_first // 2]) > 50
    assert sum(further[last_first:]) < 150


# --- stopped, extended, changed -------------------------------------------------------------------


def test_a_folder_that_is_cut_anywhere_goes_on_as_if_it_had_not_been(many, server):
    flags = ["--num-samples", 7, *UNTIL, "--first", 3]
    whole = rows_of(many, "whole", *flags)
    lines = (many.out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    cuts = {1: 0, 2: 5, 4: 0, 20: 9, len(lines) // 2: 1, len(lines) - 1: 0}
    for kept, torn in cuts.items():
        many.out = many.out.with_name(f"cut{kept}")
        many.out.mkdir()
        (many.out / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
        server.configure()
        assert call(many, *flags) == 0
        assert {unit(row): row for row in many.judged} == whole
        asked = Counter(
            (entry["seed"] + n) for entry in server.log() for n in range(entry["n"])
        )  # fmt: skip
        assert max(asked.values()) == 1
        assert asked.total() == len(whole) - kept
        account = many.summary["account"]
        assert (account["judged"], account["not_asked"]) == (len(whole), 0)


@pytest.mark.slow
def test_killed_runs_end_with_the_units_of_a_run_that_was_not(tmp_path, server):
    world = World(tmp_path, server, count=60)
    flags = ["--num-samples", 8, *UNTIL, "--concurrency", 8]
    whole = rows_of(world, "whole", *flags)
    world.out = world.out.with_name("killed")
    server.configure(latency=0.05)
    for _ in range(3):
        running = world.start(*flags, "--out", world.out)
        before = len(server.log())
        server.wait_for(before + 40)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert call(world, *flags) == 0
    assert {unit(row): row for row in world.judged} == whole


@pytest.mark.slow
def test_an_interrupted_run_says_what_it_did_not_ask(tmp_path, server):
    world = World(tmp_path, server, count=60)
    server.configure(latency=0.05)
    flags = ["--num-samples", 8, *UNTIL, "--concurrency", 4]
    running = world.start(*flags)
    server.wait_for(40)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped early; the same command continues" in output
    judged, expected = output.rpartition(" judged of ")[0].split()[-1], 960
    assert f"{judged} judged of {expected}" in output
    assert " 0 not asked" not in output
    assert not (world.out / "summary.json").exists()
    assert call(world, *flags) == 0
    assert world.summary["account"]["not_asked"] == 0


def test_more_samples_another_first_and_until_itself_may_change_in_a_folder(many, server):
    def asked() -> int:
        count = sum(entry["n"] for entry in server.log())
        server.configure()
        return count

    fixed = rows_of(many, "fixed", "--num-samples", 8)
    server.configure()
    many.out = many.out.with_name("changing")
    here = set()
    for samples, first, until in (
        (4, 2, "right,wrong"), (8, 2, "right,wrong"), (8, 3, "right,wrong"), (8, 1, "right"),
        (4, 1, "off"), (8, 2, "wrong"), (8, 1, "off"),
    ):  # fmt: skip
        wanted = {"right": "correct", "wrong": "incorrect"}
        wanted = {wanted[name] for name in until.split(",") if until != "off"}
        new = needed(fixed, first if wanted else samples, samples, wanted or {"all"}) - here
        here |= new
        assert call(many, "--num-samples", samples, "--first", first, "--until", until) == 0
        assert asked() == len(new)
        judged = {unit(row): row for row in many.judged}
        assert judged == {place: fixed[place] for place in here if place[2] < samples}
        account = many.summary["account"]
        assert account["judged"] + account.get("settled", 0) == 24 * samples
    assert judged == fixed


def test_fewer_comparisons_and_orders_are_kept_to(many, server):
    flags = ["--num-samples", 8, *UNTIL]
    whole = rows_of(many, "whole", *flags)
    server.configure()
    part = rows_of(many, "part", *flags, "--limit", 5, "--orders", "swapped")
    keys = {many.key(n) for n in range(5)}
    assert part == {u: row for u, row in whole.items() if u[0] in keys and u[1] == "swapped"}
    assert many.summary["account"]["expected"] == 40
    assert call(many, *flags) == 0
    assert {unit(row): row for row in many.judged} == whole


def test_held_out_comparisons_are_neither_asked_nor_settled(many, server):
    flags = ["--num-samples", 8, *UNTIL]
    whole = rows_of(many, "whole", *flags)
    held_out = many.data.with_name("held_out.json")
    held_out.write_text(json.dumps(many.rows[:5]))
    server.configure()
    part = rows_of(many, "part", *flags, "--exclude", held_out)
    keys = {many.key(n) for n in range(5)}
    assert part == {place: row for place, row in whole.items() if place[0] not in keys}
    account = many.summary["account"]
    assert (account["excluded"], account["not_asked"]) == (5 * 16, 0)
    assert account["judged"] + account["settled"] == 7 * 16
    assert account["expected"] == 12 * 16


# --- failures -------------------------------------------------------------------------------------


def test_a_failure_stands_for_the_samples_after_it_until_it_is_asked_again(world, server):
    whole = rows_of(world, "whole", "--num-samples", 8, *UNTIL)
    world.out = world.out.with_name("failing")
    refused = {"caption": "caption 1", "kind": "status", "status": 400}
    server.configure(faults=[refused])
    flags = ["--num-samples", 8, *UNTIL]
    for _ in range(2):
        assert call(world, *flags) == 0
        failed = world.read("failed")
        assert [(row["order"], row["samples"]) for row in failed] == [
            ("given", list(range(8))), ("swapped", list(range(8))),
        ]  # fmt: skip
        account = world.summary["account"]
        assert (account["failed"], account["expected"], account["not_asked"]) == (16, 48, 0)
        assert account["judged"] + account["settled"] == 32
    # One request for each order, and no second round, in both starts together.
    refusals = [entry for entry in server.log() if entry["caption"] == "caption 1"]
    assert len(refusals) == 2
    # It fails again, and is asked once.
    assert call(world, *flags, "--retry-failed") == 0
    assert len([entry for entry in server.log() if entry["caption"] == "caption 1"]) == 4
    server.configure()
    assert call(world, *flags, "--retry-failed") == 0
    assert {entry["caption"] for entry in server.log()} == {"caption 1"}
    assert {unit(row): row for row in world.judged} == whole
    assert world.read("failed") == []


def test_failures_of_fixed_sampling_are_asked_again_as_far_as_they_are_needed(world, server):
    whole = rows_of(world, "whole", "--num-samples", 8, *UNTIL)
    world.out = world.out.with_name("fixed")
    server.configure(faults=[{"kind": "status", "status": 400}])
    assert call(world, "--num-samples", 8) == 1
    server.configure()
    assert call(world, "--num-samples", 8, *UNTIL, "--retry-failed") == 0
    assert {unit(row): row for row in world.judged} == whole
    assert world.read("failed") == []
    account = world.summary["account"]
    assert account["judged"] + account["settled"] == 48


def test_a_bad_medium_is_read_once_an_order(world, server):
    (world.media / "images/0a.png").write_text("no image")
    assert call(world, "--num-samples", 8, *UNTIL) == 0
    failed = world.read("failed")
    assert [(row["reason"], row["units"]) for row in failed] == [("not_an_image", 8)] * 2
    assert len((world.out / "journal.jsonl").read_text().splitlines()) == 2 + len(world.judged)
    assert world.summary["account"]["failed"] == 16


def test_a_server_that_ignores_n_is_asked_for_the_same_units(many, server):
    whole = rows_of(many, "whole", "--num-samples", 8, *UNTIL, "--first", 3)
    server.configure(faults=[{"kind": "first_only"}])
    single = rows_of(many, "single", "--num-samples", 8, *UNTIL, "--first", 3)
    assert single == whole
    assert many.summary["one_response_a_request"]


# --- what counts ----------------------------------------------------------------------------------


def text_of(
    answer: int, words: str = "Seen.", totals: str = "Total: Image 1: 9, Image 2: 6"
) -> str:
    return f"<think>{words} {totals}</think><answer>Image {answer} is better</answer>"


@pytest.mark.parametrize(
    ("text", "flags", "requests"),
    [
        (text_of(1), [], 1),
        # A tie is no reason, but it can be admitted.
        (text_of(1, totals="Total: Image 1: 9, Image 2: 9"), [], 4),
        (text_of(1, totals="Total: Image 1: 9, Image 2: 9"),
         ["--until-coherence", "coherent", "tie"], 1),
        (text_of(2), [], 4),
        (text_of(1, totals="Both are fine."), [], 1),
        (text_of(1, totals="Both are fine."), ["--until-coherence", "coherent"], 4),
        # A trainer would refuse the text.
        (text_of(1, "An <image> here."), [], 4),
        ("No answer.", [], 4),
    ],
)  # fmt: skip
def test_only_a_usable_text_ends_the_asking(world, server, text, flags, requests):
    world.rows = world.rows[:1]
    server.configure(faults=[{"kind": "text", "text": text}])
    asked = ["--num-samples", 8, "--until", "right", "--orders", "given", "--min-parsed", 0]
    assert call(world, *asked, *flags) == 0
    assert len(server.log()) == requests
    assert len(world.judged) == 2 * requests


def test_hard_comparisons_that_are_left_over_are_no_reason_to_stop(world, server):
    """The first texts tell whether the prompt is right; what is left later are hard cases."""
    world.rows = [raw_row(f"caption {n}", ["0a.png", "1b.png"]) for n in range(60)]
    hard = [{"caption": f"caption {n}", "kind": "text", "text": "Hm."} for n in range(10)]
    server.configure(faults=hard)
    assert call(world, "--num-samples", 8, *UNTIL) == 0
    server.configure(faults=hard)
    assert call(world, "--num-samples", 24, *UNTIL) == 0
    assert sum(entry["n"] for entry in server.log()) >= 10 * 2 * 16
    assert world.summary["account"]["not_asked"] == 0
    assert world.summary["well_formed"]["of"] == 240


def test_a_dry_run_tells_the_first_round_and_the_most_that_may_be_asked(many, server, capfd):
    flags = ["--num-samples", 8, *UNTIL, "--limit", 6]
    judged = len(rows_of(many, "run", *flags))
    settled = many.summary["account"]["settled"]
    server.configure()
    capfd.readouterr()
    assert call(many, "--num-samples", 8, *UNTIL, "--dry-run") == 0
    counts, _ = json.JSONDecoder().raw_decode(capfd.readouterr().out)
    assert (counts["expected"], counts["judged"], counts["to_ask"]) == (192, judged, 24)
    assert counts["to_ask_at_most"] == 96 == 192 - judged - settled
    assert server.log() == []


def test_when_only_outcomes_can_tell_what_comes_next_the_iterator_says_so_at_once(world):
    world.rows = [raw_row(f"caption {n}", ["0a.png", "1b.png"]) for n in range(50)]
    argv = world.command("--num-samples", 8, *UNTIL)[len(SCRIPT) :]
    with Ledger(None) as ledger:
        rounds = iter(Rounds(Run(parse(InferenceSettings, "", argv=argv), ledger)))
        first = [next(rounds) for _ in range(100)]
        assert {(request.first, request.count) for request in first} == {(0, 2)}
        assert [next(rounds) for _ in range(3)] == [LATER] * 3
