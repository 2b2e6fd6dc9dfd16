"""The merger when something goes wrong: mistakes, kills, full disks, odd names."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.pairing.engine import match, scan, workers
from cot_reward.pairing.engine.database import workspace
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from helpers.environments import REPO
from helpers.merging import RIGHT, WRONG, run
from helpers.rows import judged_row, read_lines, write_lines
from helpers.texts import cot


def test_a_merge_that_fails_leaves_the_last_one_alone(tmp_path):
    run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="no pair"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG, caption="another")])
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path, [], [], "--correct", tmp_path / "missing.jsonl")
    for memory in ("1 parsec", " -5GB"):
        with pytest.raises(UserError, match=f"--memory {memory}"):
            run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--memory", memory)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def many(folder: Path, number: int) -> list[str]:
    """Write files about this number of comparisons; the flags for them."""
    for name, text in (("correct", RIGHT), ("incorrect", WRONG)):
        other = WRONG if text == RIGHT else RIGHT
        write_lines(
            folder / f"{name}.jsonl",
            (
                judged_row((text, other)[n % 2], 1 + n % 2, f"caption {n}", sample=k)
                for n in range(number)
                for k in range(2)
            ),
        )
    return ["--correct", f"{folder}/correct.jsonl", "--incorrect", f"{folder}/incorrect.jsonl"]


@pytest.mark.slow
def test_one_process_and_several_write_the_same(tmp_path, monkeypatch):
    flags = many(tmp_path, 4000)
    monkeypatch.setattr(workers, "MIN_BYTES_FOR_PROCESSES", 1)
    monkeypatch.setattr(scan, "PART_BYTES", 2**19)
    monkeypatch.setattr(match, "ROWS_PER_BATCH", 500)
    for count in (1, 2):
        # Sorted in one bucket, and in several.
        monkeypatch.setattr(scan, "MAX_BUCKET_BYTES", 2**40 if count == 1 else 2**22)
        out = tmp_path / f"out{count}"
        argv = [*flags, "--out", out, "--workers", count, "--eval-fraction", 0.1]
        assert merge(settings.parse(MergeSettings, "", argv=list(map(str, argv)))) == 0
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()
    assert len(read_lines(tmp_path / "out1/train.jsonl")) == 3600
    summaries = [json.loads((tmp_path / f"out{n}/summary.json").read_text()) for n in (1, 2)]
    assert summaries[0]["correct_side"] == summaries[1]["correct_side"] == {
        "rows": 8000, "identical": 4000, "used": 3600, "used_in_eval": 400
    }  # fmt: skip


def killed(command: list[str], after: float) -> int:
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@pytest.mark.slow
def test_a_kill_leaves_whole_files_and_a_rerun_clears_up(tmp_path):
    flags = many(tmp_path, 3000)
    out = tmp_path / "out"
    command = [sys.executable, "scripts/merge_json.py", *flags, "--out", str(out)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    whole = (out / "train.jsonl").read_bytes()
    ended = [killed([*command, "--seed", "1"], after) for after in (0.6, 1.0, 1.4, 1.8, 2.2)]
    assert -signal.SIGKILL in ended
    assert len((out / "train.jsonl").read_bytes().splitlines()) == 3000
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    assert (out / "train.jsonl").read_bytes() == whole
    assert {path.name for path in out.iterdir() if path.name != "plots"} == {
        "train.jsonl", "summary.json"
    }  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_leaves_the_last_merge(tmp_path):
    flags = many(tmp_path, 3000)
    command = [sys.executable, "scripts/merge_json.py", *flags, "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for blocks in (64, 400, 1500, 3000):
        limited = ["bash", "-c", f'trap "" XFSZ; ulimit -f {blocks}; exec "$@"', "-", *command]
        done = subprocess.run(limited, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 2, (blocks, done.stderr[-2000:])
        assert "Traceback" not in done.stderr
        assert "the merge could not be finished" in done.stderr or "cannot be w" in done.stderr
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_names_and_texts_may_hold_anything(tmp_path):
    folder = tmp_path / "o'ut [1]*{a,b}"
    folder.mkdir()
    strange = cot(remark="\0 \u2028 \U0001f600 '\" ")
    right = [judged_row(strange, caption="it's; --", source="a'b", model="m\0")]
    pairs, summary = run(
        folder, right, [judged_row(WRONG, caption="it's; --")], "--source-weights", "a'b=2"
    )
    assert (pairs[0]["chosen"], pairs[0]["chosen_model"]) == (strange, "m\0")
    assert summary["by_source"] == {"a'b": 1}
    with pytest.raises(UserError, match="cannot be read"):
        run(folder, right, [], "--incorrect", folder)


def test_two_merges_do_not_share_a_folder(tmp_path):
    with workspace(tmp_path), pytest.raises(UserError, match="another merge writes to this"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--out", tmp_path)


@pytest.mark.parametrize("name", ["out?", "a?b/out", "a\\b"])
def test_a_folder_that_the_database_cannot_open_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"a folder with '.*' in its path cannot be used"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--out", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_number_of_pairs_does_not_go_with_all_of_them(tmp_path):
    rows = [judged_row(RIGHT)], [judged_row(WRONG)]
    with pytest.raises(UserError, match="--select all takes every pair"):
        run(tmp_path, *rows, "--select", "all", "--pairs-per-comparison", 2)
    assert len(run(tmp_path, *rows, "--select", "all")[0]) == 1


@pytest.mark.parametrize(
    "address", ["https://host/{}.png", "s3://bucket/{}.png", "data:image/png;base64,iVBOR{}"]
)
def test_a_medium_that_is_an_address_is_a_bad_row(tmp_path, address):
    # Each row has an address of its own, and all are one line of the error.
    rows = [judged_row(RIGHT, images=(address.format(n), "b.png")) for n in range(3)]
    with pytest.raises(
        UserError, match=r"correct.jsonl:1: a path in 'images' is an address .*and 2 more rows"
    ) as told:
        run(tmp_path, rows, [judged_row(WRONG)])
    assert str(told.value).count("an address") == 1
