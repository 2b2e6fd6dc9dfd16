"""scripts/distill.py: cold-start rows of a stronger model, as stage 1 trains on them."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.cold_start import ColdStartSettings, check_orders, write_cold_start
from cot_reward.judge import judge
from cot_reward.records import ORDERS
from cot_reward.rows.checking import check_files
from cot_reward.rows.templates import derive
from cot_reward.tasks import TASKS
from helpers.client_world import World
from helpers.environments import REPO
from helpers.rows import read_lines, write_lines
from helpers.server import MockServer


@pytest.fixture(scope="module")
def server():
    with MockServer() as running:
        yield running


def distill(world: World, rows_out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    _, _, *base = world.command("--rows-out", rows_out, *flags)
    return subprocess.run(
        [sys.executable, "scripts/distill.py", *base], cwd=REPO, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def test_each_comparison_has_a_right_text_in_both_orders(
    tmp_path: Path, server: MockServer
) -> None:
    world = World(tmp_path, server, count=6)
    out = tmp_path / "cold.jsonl"
    done = distill(world, out, "--num-samples", 8)
    assert done.returncode == 0, done.stderr
    rows = read_lines(out)
    by_comparison = defaultdict(set)
    for row in rows:
        by_comparison[row["id"]].add(row["order"])
        found = judge(row["conversations"][1]["value"], TASKS[row["task"]], row["label"])
        assert (found.verdict, found.coherence) == ("correct", "coherent")
    assert all(orders == {"given", "swapped"} for orders in by_comparison.values())
    assert len(rows) == 2 * len(by_comparison)
    assert Counter(row["answer"] for row in rows) == {1: len(rows) // 2, 2: len(rows) // 2}
    # Stage 1 reads them, and the prompt that it learns can be derived.
    assert check_files([out], world.media, workers=1).problems == []
    assert derive([out]).text == TASKS["image_generation"].template
    # The same command finds its answers again, and asks nothing.
    asked = len(server.log())
    again = distill(world, out, "--num-samples", 8)
    assert again.returncode == 0
    assert read_lines(out) == rows
    assert len(server.log()) == asked
    assert f"{len(rows)} rows of" in again.stdout


def judged(number: int, order: str, answer: int = 1) -> dict:
    found = {"answer": answer, "sample": 0, "coherence": "coherent"}
    return {"id": f"{number}", "order": order} | found


def test_texts_of_one_order_are_taken_only_on_demand(tmp_path: Path) -> None:
    rows = [judged(1, "given"), judged(1, "swapped", 2), judged(2, "given"), judged(3, "swapped")]
    unsure = [judged(n, order) | {"coherence": "no_totals"} for n in (1, 4) for order in ORDERS]
    correct = write_lines(tmp_path / "correct.jsonl", [*unsure, *rows])
    out = tmp_path / "rows.jsonl"
    assert write_cold_start(correct, ColdStartSettings(out)) == 0
    assert read_lines(out) == rows[:2]
    assert write_cold_start(correct, ColdStartSettings(out, both_orders=False)) == 0
    assert len(read_lines(out)) == 4
    with pytest.raises(UserError, match="only one order is asked"):
        check_orders(1, ColdStartSettings(out))


def test_no_comparison_is_cut_by_the_limit(tmp_path: Path) -> None:
    rows = [judged(n, order) for n in range(5) for order in ("given", "swapped")]
    correct = write_lines(tmp_path / "correct.jsonl", rows)
    out = tmp_path / "rows.jsonl"
    assert write_cold_start(correct, ColdStartSettings(out, max_rows=5)) == 0
    assert read_lines(out) == rows[:4]


def test_no_text_in_both_orders_is_an_error(tmp_path: Path) -> None:
    correct = write_lines(tmp_path / "correct.jsonl", [judged(1, "given")])
    with pytest.raises(
        UserError, match=r"1 comparisons have a right .* none of them in both orders"
    ):
        write_cold_start(correct, ColdStartSettings(tmp_path / "rows.jsonl"))
    (tmp_path / "broken.jsonl").write_text("{\n" + json.dumps(judged(1, "given")) + "\n")
    with pytest.raises(UserError, match=r"broken.jsonl:1: not valid JSON"):
        write_cold_start(tmp_path / "broken.jsonl", ColdStartSettings(tmp_path / "rows.jsonl"))
