"""scripts/score.py: candidates in rows and folders, killed and continued, changed and refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.reward.score import score
from cot_reward.reward.settings import RewardSettings, ScoreSettings
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import read_lines


class Candidates:
    """`count` prompts with pictures that become lighter, and the command line about them."""

    def __init__(self, folder: Path, server, count: int = 3, each: int = 3) -> None:
        self.folder, self.out, self.server = folder, folder / "out", server
        self.data, self.images = folder / "prompts.jsonl", folder / "images"
        self.rows = [{"id": f"p{n}", "prompt": f"a cat {n}"} for n in range(count)]
        for n in range(count):
            for light in range(each):
                picture(self.images / f"p{n}" / f"{light}.png", (20 + 60 * light, n, 90))
        server.configure(sees=True)

    def argv(self, *flags: object) -> list[str]:
        self.data.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        base = ["--data", self.data, "--out", self.out, "--base-url", self.server.url]
        if not any("candidates" in row for row in self.rows):
            base += ["--candidates", self.images]
        return [str(flag) for flag in (*base, *flags)]

    def call(self, *flags: object) -> int:
        chosen, asked = settings.parse_several(
            (ScoreSettings, RewardSettings), "", argv=self.argv(*flags)
        )
        return score(chosen, asked, api_key="none")

    def start(self, *flags: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "scripts/score.py", *self.argv(*flags)],
            cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def read(self, name: str) -> list[dict]:
        return read_lines(self.out / f"{name}.jsonl")

    @property
    def summary(self) -> dict:
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture
def world(tmp_path, server):
    return Candidates(tmp_path, server)


def test_the_best_of_a_folder(world):
    (world.images / "p1" / "bad.png").write_bytes(b"no picture")
    (world.images / "p1" / "notes.txt").write_text("no candidate")
    assert world.call() == 0
    assert [(row["id"], row["name"]) for row in world.read("best")] == [
        (f"p{n}", f"p{n}/2.png") for n in range(3)
    ]
    rows = world.read("scores")
    assert len(rows) == 10
    assert [row["rank"] for row in rows if row["id"] == "p0"] == [3, 2, 1]
    bad = next(row for row in rows if row["name"] == "p1/bad.png")
    assert (bad["rank"], bad["failure"], bad["strength"]) == (0, "not_an_image", None)
    light = [row["scores"][0]["score"] for row in rows if row["id"] == "p2"]
    assert light == sorted(light)
    assert [row["reason"] for row in world.read("failed")] == ["not_an_image"]
    summary = world.summary
    assert summary["account"] == {
        "rows": 3, "bad_rows": 0, "prompts": 3, "ranked": 3, "not_ranked": 0,
    }  # fmt: skip
    assert summary["comparisons"] == {"judged": 9, "failed": 0}
    assert summary["consistent"]["share"] == summary["readable"]["share"] == 1
    assert summary["shown_first_preferred"]["share"] == 0.5


def test_what_was_answered_is_not_asked_again(world):
    assert world.call() == 0
    best, scores = world.read("best"), world.read("scores")
    assert len(world.server.log()) == 18
    assert world.call() == 0
    assert len(world.server.log()) == 18
    assert (world.read("best"), world.read("scores")) == (best, scores)
    # A new candidate: only its own comparisons. A changed picture: another content.
    picture(world.images / "p0" / "3.png", (255, 255, 255))
    picture(world.images / "p1" / "0.png", (250, 250, 250))
    assert world.call() == 0
    assert len(world.server.log()) == 18 + 2 * 3 + 2 * 2
    assert [row["name"] for row in world.read("best")] == ["p0/3.png", "p1/0.png", "p2/2.png"]


def test_a_run_that_ranks_hardly_anything_is_no_success(world):
    world.rows = [{"id": f"p{n}", "prompt": "a cat", "candidates": ["a.png", "b.png"]}
                  for n in range(9)]  # fmt: skip
    kept = {"id": "good", "prompt": "a cat", "candidates": ["p0/0.png", "p0/1.png"]}
    world.rows.append(kept)
    assert world.call("--root", world.images) == 3
    assert world.summary["account"]["ranked"] == 1
    assert world.read("failed")[0]["detail"].startswith("a.png: ")


def test_a_name_that_is_not_utf8_is_no_end(world):
    bad = os.fsencode(world.images / "p1") + b"/bad\xff.png"
    with open(bad, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\nxx")
    assert world.call() == 0
    assert [row["reason"] for row in world.read("failed")] == ["not_an_image"]


def test_a_folder_of_other_settings_is_refused(world, tmp_path):
    assert world.call() == 0
    for flags in (["--votes", 2], ["--seed", 1], ["--form", "json"], ["--orders", "given"]):
        with pytest.raises(UserError, match="other settings"):
            world.call(*flags)
    (tmp_path / "other.txt").write_text("Which? [{caption}]")
    with pytest.raises(UserError, match="template_hash"):
        world.call("--template", tmp_path / "other.txt")
    # A server that tells less does not loosen the folder.
    world.server.configure(sees=True, probe={"refuses": ["logprobs"]})
    assert world.call() == 0
    world.server.configure(sees=True, probe={"logprob": -3.5})
    with pytest.raises(UserError, match="other weights"):
        world.call()
    assert world.call("--any-weights") == 0
    world.server.configure(sees=True, models=["another"])
    with pytest.raises(UserError, match="model: 'mock' there, 'another' now"):
        world.call()


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, server):
    world = Candidates(tmp_path, server, count=12, each=4)
    server.configure(sees=True, latency=0.05)
    asked = 0
    for wanted in (10, 40):
        run = world.start("--concurrency", 2)
        server.wait_for(wanted, 60)
        run.kill()
        run.communicate()
        assert not (world.out / "summary.json").exists()
    asked = len(server.log())
    assert world.call("--concurrency", 8) == 0
    # What was in flight when it was killed is asked again, and nothing else.
    total = 12 * 6 * 2
    assert total <= len(server.log()) <= total + 2 * 6
    assert asked > 40 - 1
    assert [row["name"] for row in world.read("best")] == [f"p{n}/3.png" for n in range(12)]
    assert world.summary["comparisons"] == {"judged": 72, "failed": 0}
    comparisons = [
        entry for entry in read_lines(world.out / "journal.jsonl") if "comparison" in entry
    ]
    assert len({entry["comparison"] for entry in comparisons}) == len(comparisons) == 72


@pytest.mark.slow
def test_a_stopped_run_keeps_what_is_in_flight(tmp_path, server):
    world = Candidates(tmp_path, server, count=12, each=4)
    server.configure(sees=True, latency=0.1)
    run = world.start("--concurrency", 4)
    server.wait_for(8, 60)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "the same command continues" in output
    assert not (world.out / "summary.json").exists()
    asked = len(server.log())
    entries = read_lines(world.out / "journal.jsonl")
    assert 2 * sum("comparison" in entry for entry in entries) == asked
    assert world.call() == 0
    assert len(server.log()) == 12 * 6 * 2


def test_a_torn_line_is_asked_again(world):
    assert world.call() == 0
    journal = world.out / "journal.jsonl"
    entries = [
        line for line in journal.read_bytes().splitlines(keepends=True) if b'"row"' not in line[:9]
    ]
    journal.write_bytes(b"".join(entries[:-1]) + entries[-1][:30])
    assert world.call() == 0
    assert len(world.server.log()) == 20
    assert world.summary["comparisons"]["judged"] == 9


def test_servers_that_go_away(tmp_path):
    from helpers.server import MockServer

    with MockServer() as server:
        world = Candidates(tmp_path, server)
        server.configure(sees=True, faults=[{"kind": "exit", "caption": "a cat 2"}])
        assert world.call("--max-pause", 0.2, "--concurrency", 1, "--max-attempts", 1) == 1
        assert not (world.out / "summary.json").exists()
        assert {row["id"] for row in world.read("best")} <= {"p0", "p1"}
    with MockServer() as server:
        world.server = server
        server.configure(sees=True)
        assert world.call() == 0
        assert len(world.read("best")) == 3


def test_failed_comparisons_are_counted_and_asked_again_on_demand(world):
    world.server.configure(
        sees=True, faults=[{"kind": "status", "status": 400, "caption": "a cat 1"}]
    )
    assert world.call() == 3
    assert world.summary["failed_reasons"] == {"refused": 3}
    assert world.summary["account"]["not_ranked"] == 1
    assert {row["reason"] for row in world.read("failed")} == {"refused"}
    world.server.configure(sees=True)
    assert world.call() == 3
    assert world.server.log() == []
    assert world.call("--retry-failed") == 0
    assert len(world.server.log()) == 6
    assert len(world.read("best")) == 3


def test_rows_name_their_candidates(world):
    world.rows = [
        {"prompt": "a cat", "candidates": ["images/p0/0.png", "images/p0/2.png", "none.png"]},
        {"id": 7, "prompt": "a dog", "candidates": ["images/p1/1.png"]},
    ]
    assert world.call("--max-bad-rows", 1) == 0
    assert [(row["id"], row["name"]) for row in world.read("best")] == [
        ("1", "images/p0/2.png"), ("7", "images/p1/1.png"),
    ]  # fmt: skip
    assert [row["reason"] for row in world.read("failed")] == ["missing"]


def test_against_a_reference(world):
    world.rows[0]["reference"] = world.rows[1]["reference"] = "images/p2/1.png"
    with pytest.raises(UserError, match="reference"):
        world.call("--reference")
    world.rows.pop()
    assert world.call("--reference") == 0
    assert world.summary["comparisons"]["judged"] == 6
    rates = [row["win_rate"] for row in world.read("scores") if row["id"] == "p0"]
    assert rates == [0, 0, 1]


def test_other_tasks(world):
    world.rows = [
        {"question": "what?", "candidates": ["no", "a cat"], "context": "images/p0/0.png"},
        {"prompt": "what?", "candidates": ["a cat", "no"], "context": ["images/p0/1.png"]},
    ]
    assert world.call("--task", "image_understanding") == 0
    assert [row["name"] for row in world.read("best")] == ["a cat", "a cat"]
    world.out = world.folder / "videos"
    world.rows = [{"id": "v", "prompt": "a cat"}]
    for name, light in (("one", 200), ("two", 20)):
        for frame in (1, 2, 10):
            picture(world.images / "v" / name / f"{frame}.png", (light, frame, 9))
    assert world.call("--task", "video_generation") == 0
    assert [row["name"] for row in world.read("best")] == ["v/one"]
    shown = world.server.log()[-1]["images"]
    assert len(shown) == 6
    # 2.png before 10.png.
    assert len(set(shown)) == 6


def test_no_path_of_the_data_leaves_its_root(world, tmp_path):
    secret = picture(tmp_path.parent / "secret" / "x.png")
    (world.images / "p0" / "link.png").symlink_to(secret)
    (world.images / "p9").symlink_to(secret.parent)
    os.mkfifo(world.images / "p0" / "pipe.png")
    ids = ("p9", "../images/p0", "..", "/tmp", "a\0b", "p1/../p1")
    world.rows += [{"id": one, "prompt": "x"} for one in ids]
    assert world.call("--max-bad-rows", 1) == 0
    failed = {(row["id"], row["reason"]) for row in world.read("failed")}
    assert failed == {
        ("p0", "escapes"), ("p0", "missing"), *((str(n), "bad_row") for n in range(4, 9)),
    }  # fmt: skip
    world.out = tmp_path / "rows"
    world.rows = [{"prompt": "x", "candidates": [str(secret), "../secret/x.png", "images/p1/0.png",
                                                 "images/p1/1.png"]}]  # fmt: skip
    assert world.call() == 0
    assert [row["reason"] for row in world.read("failed")] == ["escapes", "escapes"]
    assert all("secret" not in str(entry) for entry in world.server.log())


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"prompt": " ", "candidates": ["a.png"]}], "prompt"),
        ([{"prompt": "x", "candidates": []}], "candidates"),
        ([{"prompt": "x", "candidates": [3, 4]}], "string"),
        ([{"prompt": "x", "candidates": ["data:image/png;base64,xxxx"]}], "address"),
        ([{"id": "a", "prompt": "x", "candidates": ["a.png"]}] * 2, "another row"),
        ([{"id": ["a"], "prompt": "x", "candidates": ["a.png"]}], "id"),
        ([{"id": "none", "prompt": "x"}], "no folder"),
    ],
)
def test_bad_rows_are_refused_and_named(world, rows, what):
    world.rows = rows
    with pytest.raises(UserError, match=what):
        world.call()
    assert world.server.log() == []


def test_two_runs_do_not_share_a_folder(world):
    world.server.configure(sees=True, latency=1.0)
    run = world.start()
    world.server.wait_for(1, 60)
    with pytest.raises(UserError, match="another run"):
        world.call()
    run.kill()
    run.communicate()


def test_a_disk_that_is_full(world):
    run = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$0" scripts/score.py "$@"', sys.executable,
         *world.argv()],
        cwd=REPO, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "everything before is kept" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (world.out / "summary.json").exists()
    assert world.call() == 0


def test_too_few_comparisons_are_refused(world):
    with pytest.raises(UserError, match="at least 2"):
        world.call("--max-comparisons", 1)
    assert world.call("--max-comparisons", 2) == 0
    assert world.summary["comparisons"]["judged"] == 6
