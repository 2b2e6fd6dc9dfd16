"""Merges of shares of the comparisons, and the shares put together."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.pairing.joining.run import join
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import JoinSettings, MergeSettings
from cot_reward.rows.shards import Shard
from helpers.environments import REPO
from helpers.merging import RIGHT, WRONG, random_rows
from helpers.rows import judged_row, raw_row, read_lines, write_lines
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st


def flags(folder: Path, *more: object) -> list[object]:
    return ["--correct", folder / "correct.jsonl", "--incorrect", folder / "incorrect.jsonl",
            "--media-root", folder, "--max-bad-rows", 1, *more]  # fmt: skip


def run_merge(out: Path, argv: list[object], *more: object) -> None:
    argv = [*argv, "--out", out, *more]
    assert merge(settings.parse(MergeSettings, "", argv=list(map(str, argv)))) == 0


def run_join(out: Path, folders: list[Path], *more: object) -> dict[str, Any]:
    argv = ["--join", *folders, "--out", out, *more]
    assert join(settings.parse(JoinSettings, "", argv=list(map(str, argv)))) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def shares(folder: Path, argv: list[object], count: int) -> Iterator[Path]:
    """Merge each share into a folder of its own; shares without a pair are left out."""
    for number in range(1, count + 1):
        out = folder / f"share{number}"
        try:
            run_merge(out, argv, "--shard", f"{number}/{count}")
        except UserError as error:
            if "no pair" not in str(error):
                raise
            continue
        yield out


# What is the joined shares' own in a summary.
OWN = ("settings", "command", "seconds", "seconds_of", "versions", "shares")


@pytest.mark.parametrize("count", [1, 2, 3, pytest.param(7, marks=pytest.mark.slow)])
@given(
    seed=st.integers(0, 2**16),
    more=st.sampled_from(
        [
            (), ("--select", "all"), ("--pairs-per-comparison", 3, "--select", "random"),
            ("--pair-from", "both", "--trained-model", "m"), ("--pass-rate", 0.2, 0.8),
            ("--pairs-per-comparison", 2, "--exclude", "held_out.jsonl"),
        ]
    ),
)  # fmt: skip
@hypothesis_settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_joined_shares_are_one_merge(tmp_path_factory, count, seed, more):
    folder = tmp_path_factory.mktemp("shares")
    correct, incorrect = random_rows(seed, 250)
    write_lines(folder / "correct.jsonl", correct)
    write_lines(folder / "incorrect.jsonl", incorrect)
    write_lines(folder / "held_out.jsonl", [r for r in correct[:9] if isinstance(r, dict)])
    more = [folder / word if word == "held_out.jsonl" else word for word in more]
    # Balancing would drop other pairs in each share.
    argv = flags(folder, "--no-balance-positions", *more)
    run_merge(folder / "one", argv)
    folders = list(shares(folder, argv, count))
    pairs = {path: read_lines(path / "train.jsonl") for path in [folder / "one", *folders]}
    for path in folders:
        shard = Shard.parse(json.loads((path / "summary.json").read_text())["settings"]["shard"])
        assert all(shard.holds(pair["id"]) for pair in pairs[path])
    of_all = sorted(json.dumps(pair) for path in folders for pair in pairs[path])
    assert of_all == sorted(json.dumps(pair) for pair in pairs[folder / "one"])
    if len(folders) < count:
        with pytest.raises(UserError, match=r"shares are missing|are in no share"):
            run_join(folder / "joined", folders)
        return
    joined = run_join(folder / "joined", folders[::-1])
    one = json.loads((folder / "one/summary.json").read_text())
    for name in ("train.jsonl", "bad_rows.jsonl", "contradictory_labels.jsonl"):
        texts = [folder / of / name for of in ("one", "joined")]
        assert texts[0].exists() == texts[1].exists(), name
        if texts[0].exists():
            assert texts[0].read_bytes() == texts[1].read_bytes(), name
    assert joined.keys() - {"shares"} == one.keys() - {"seconds_of"}
    for name in one.keys() - set(OWN):
        assert joined[name] == one[name], name
    changed = {
        name for name in one["settings"] if one["settings"][name] != joined["settings"][name]
    }
    assert changed == {"out"}


def write_rows(folder: Path) -> list[object]:
    """The flags of a merge, without --out, of rows that give each of three shares some pairs."""
    correct, incorrect = random_rows(0, 600)
    write_lines(folder / "correct.jsonl", correct)
    write_lines(folder / "incorrect.jsonl", incorrect)
    return flags(folder)


@pytest.fixture
def argv(tmp_path: Path) -> list[object]:
    return write_rows(tmp_path)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shares of a merge."""
    folder = tmp_path_factory.mktemp("merged")
    return list(shares(folder, write_rows(folder), 3))


@pytest.fixture
def folders(merged: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of them, which a test may change."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in merged]


def change_summary(folder: Path, **changes: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_each_share_is_balanced_by_itself(tmp_path, argv):
    argv += ["--select", "all", "--balance-lengths"]
    run_merge(tmp_path / "one", argv)
    joined = run_join(tmp_path / "joined", list(shares(tmp_path, argv, 3)))
    one = json.loads((tmp_path / "one/summary.json").read_text())
    assert joined["pairs_before_balancing"] == one["pairs_before_balancing"] > joined["pairs"]
    for folder in ("share1", "share2", "share3"):
        share = json.loads((tmp_path / folder / "summary.json").read_text())
        allowed = max(1, 0.01 * share["pairs"])
        assert abs(share["chosen_answer"]["1"] - share["chosen_answer"]["2"]) <= allowed
        assert abs(share["chosen_longer"] - share["rejected_longer"]) <= allowed
    assert sum(joined["chosen_answer"].values()) == joined["pairs"]
    assert len(read_lines(tmp_path / "joined/train.jsonl")) == joined["pairs"]


def test_a_machine_that_sampled_a_share_needs_no_other_rows(tmp_path, monkeypatch):
    """The files of all machines have the same names, and each has a bad row at the same place."""
    sides = dict(zip(("correct", "incorrect"), random_rows(0, 600), strict=True))
    rows = {side: [row for row in of if "id" in row] for side, of in sides.items()}
    for number in (0, 1, 2):
        machine = tmp_path / f"machine{number}"
        machine.mkdir()
        for side, of_side in rows.items():
            own = [row for row in of_side if not number or Shard(number, 2).holds(row["id"])]
            write_lines(machine / f"{side}.jsonl", ["no row", *own, *["no row"] * (not number)])
        monkeypatch.chdir(machine)
        share = ("--shard", f"{number}/2") if number else ()
        run_merge(Path("out"), flags(Path(), "--no-balance-positions", *share))
    joined = run_join(tmp_path / "joined", [tmp_path / "machine1/out", tmp_path / "machine2/out"])
    one = json.loads((tmp_path / "machine0/out/summary.json").read_text())
    texts = [tmp_path / folder / "train.jsonl" for folder in ("machine0/out", "joined")]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    assert len(joined["bad_rows"]) == len(one["bad_rows"]) > 4
    for name in ("correct_side", "incorrect_side", "pairs", "shortcut", "pass_rates"):
        assert joined[name] == one[name], name
    assert len(joined["files"]) == 4


def test_rows_that_no_share_has_are_an_error(tmp_path, argv):
    """The second machine got the files of the first pass only."""
    write_lines(tmp_path / "more.jsonl", read_lines(tmp_path / "incorrect.jsonl")[:100])
    run_merge(tmp_path / "a", [*argv, tmp_path / "more.jsonl"][:2] + argv[2:], "--shard", "1/2")
    both = [*argv[:3], argv[3], tmp_path / "more.jsonl", *argv[4:]]
    run_merge(tmp_path / "b", both, "--shard", "2/2")
    with pytest.raises(UserError, match=r"more\.jsonl: \d+ of its \d+ rows are in no share"):
        run_join(tmp_path / "joined", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        ("1/3", {}, "shares are missing: 1/3"),
        ("2/3", {}, "are both share 2/3"),
        ("1/2", {}, "is share 2/3, but .* is 1/2"),
        ("1/3", {"seed": 1}, "--seed is 0, but 1"),
        ("1/3", {"select": "random"}, "--select is 'closest-text', but 'random'"),
        ("x", {}, "'x' is no share: .*; merge this share anew"),
        ("1/3", None, "no summary.json that can be read"),
        (None, {}, "is not of a merge with --shard"),
    ],
)
def test_what_is_no_complete_merge_is_refused(tmp_path, folders, number, changes, message):
    if message.startswith("shares are"):
        folders = folders[1:]
    elif changes is None:
        (folders[0] / "summary.json").unlink()
    else:
        summary = json.loads((folders[0] / "summary.json").read_text())
        change_summary(folders[0], settings=summary["settings"] | {"shard": number} | changes)
    with pytest.raises(UserError, match=message):
        run_join(tmp_path / "joined", folders)
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], r"has \d+ rows, but \d+ in its summary.json"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "is not a row of its merge"),
        (lambda lines: [*lines[:-1], lines[-8]], "not in the order that its merge left"),
        (lambda lines: [lines[0].replace('"id":"', '"id":"0')], "is not of share 2/3"),
        (lambda lines: [*lines, ""], "is not a row of its merge"),
        (lambda lines: [lines[0].replace("Judge", "judge"), *lines[1:]], "has another sha256"),
        (lambda lines: [lines[0].replace('"chosen":"', '"chosen":null,"x":"')], "'chosen' must be"),
        (lambda lines: [lines[0].replace('_generation"', '"')], "unknown task '"),
    ],
)
def test_a_file_that_changed_on_its_way_is_refused(tmp_path, folders, damage, message):
    path = folders[1] / "train.jsonl"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined/train.jsonl").write_text("earlier")
    with pytest.raises(UserError, match=message):
        run_join(tmp_path / "joined", folders)
    assert {path.name for path in (tmp_path / "joined").iterdir()} == {"train.jsonl"}
    assert (tmp_path / "joined/train.jsonl").read_text() == "earlier"


@pytest.mark.parametrize("name", ["bad_rows.jsonl", "contradictory_labels.jsonl"])
def test_a_list_that_is_missing_is_told_of(tmp_path, folders, name):
    (folders[0] / name).unlink()
    with pytest.raises(UserError, match=rf"share1/{name}: is missing, or not as its merge left"):
        run_join(tmp_path / "joined", folders)
    assert not (tmp_path / "joined/train.jsonl").exists()


@pytest.mark.parametrize(("old", "new"), [('"line"', '"place"'), ('"file"', '"path"')])
def test_a_list_that_changed_on_its_way_is_refused(tmp_path, folders, old, new):
    path = folders[1] / "bad_rows.jsonl"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"share2/bad_rows.jsonl: .* has another sha256"):
        run_join(tmp_path / "joined", folders)


def test_a_row_without_its_line_end_is_refused(tmp_path, folders):
    """The first row of the next share would stand on the same line."""
    path = folders[0] / "train.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with pytest.raises(UserError, match=r"train.jsonl: .* has another sha256"):
        run_join(tmp_path / "joined", folders)


# --- what a share's summary tells -----------------------------------------------------------------
def test_a_share_of_an_older_merger_is_merged_anew(tmp_path, folders):
    """Whatever its summary has not."""
    path = folders[1] / "summary.json"
    summary = json.loads(path.read_text())
    # These are the merge's own, or `join` makes them anew.
    free = {"bad_rows", "contradictory_labels", "command", "seconds_of", "eval", "shortcut",
            "shortcut_by_kind", "shortcut_pairs", "eval_comparisons_shared_with_train"}  # fmt: skip
    for name in summary.keys() - free - {"stage", "settings"}:
        path.write_text(json.dumps({of: value for of, value in summary.items() if of != name}))
        with pytest.raises(UserError, match=f"has no '{name}' .*; merge this share anew"):
            run_join(tmp_path / "joined", folders)
    for name in summary["files"][0]:
        files = [{of: value for of, value in summary["files"][0].items() if of != name}]
        path.write_text(json.dumps(summary | {"files": files}))
        with pytest.raises(UserError, match=r"has no 'files' .*; merge this share anew"):
            run_join(tmp_path / "joined", folders)
    for name in ("seed", "correct", "incorrect"):
        kept = {of: value for of, value in summary["settings"].items() if of != name}
        path.write_text(json.dumps(summary | {"settings": kept}))
        with pytest.raises(UserError, match=r"has no 'settings' .*; merge this share anew"):
            run_join(tmp_path / "joined", folders)
    path.write_text(json.dumps(summary | {"correct_side": {"rows": 1}}))
    with pytest.raises(UserError, match=r"do not account for all .* rows of --correct"):
        run_join(tmp_path / "joined", folders)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda held: (held / "b.jsonl").unlink(), r"only .*/1/out has the rows of held/b\.jsonl"),
        (lambda held: write_lines(held / "a.jsonl", [raw_row("x", "yz")]),
         r"held/a\.jsonl; only .*/2/out has the rows of held/a\.jsonl"),
        (lambda held: (held / "a.jsonl").rename(held / "c.jsonl"), ""),
    ],
)  # fmt: skip
def test_shares_of_other_held_out_files_are_refused(tmp_path, monkeypatch, change, told):
    """Each machine has its own copy of the files below one name."""
    correct, incorrect = ([row for row in of if "id" in row] for of in random_rows(0, 600))
    for number in (1, 2):
        machine = tmp_path / str(number)
        (machine / "held").mkdir(parents=True)
        write_lines(machine / "correct.jsonl", correct)
        write_lines(machine / "incorrect.jsonl", incorrect)
        for name, row in zip("ab", correct, strict=False):
            write_lines(machine / f"held/{name}.jsonl", [row])
        if number == 2:
            change(machine / "held")
        monkeypatch.chdir(machine)
        flags_ = flags(Path(), "--exclude", "held/*.jsonl", "--shard", f"{number}/2")
        run_merge(Path("out"), flags_)
    machines = [tmp_path / "1/out", tmp_path / "2/out"]
    if told:
        with pytest.raises(UserError, match=rf"held-out files \(--exclude\) differ: .*{told}"):
            run_join(tmp_path / "joined", machines)
    else:
        assert len(run_join(tmp_path / "joined", machines)["held_out_files"]) == 2


def test_own_files_of_one_name_and_size_are_two_files(tmp_path, monkeypatch):
    """Each machine sampled its share, with as many rows of one length."""
    of_share: dict[int, list[str]] = {1: [], 2: []}
    for number in range(100, 200):
        caption = f"caption {number}"
        of_share[1 + Shard(2, 2).holds(judged_row(RIGHT, 1, caption)["id"])].append(caption)
    for number, captions in of_share.items():
        machine = tmp_path / str(number)
        machine.mkdir()
        for side, text in (("correct", RIGHT), ("incorrect", WRONG)):
            rows = [judged_row(text, 1, caption) for caption in captions[:20]]
            write_lines(machine / f"{side}.jsonl", rows)
        monkeypatch.chdir(machine)
        run_merge(Path("out"), flags(Path(), "--shard", f"{number}/2", "--no-balance-positions"))
    joined = run_join(tmp_path / "joined", [tmp_path / "1/out", tmp_path / "2/out"])
    assert joined["pairs"] == 40
    assert [entry["comparisons"] for entry in joined["files"]] == [20] * 4
    assert joined["correct_side"] == {"rows": 40, "used": 40}


def test_a_share_may_have_no_row_of_the_trained_model(tmp_path, capsys):
    """One comparison has a right text by it; with a name that no row has all shares are refused."""
    for side, text in (("correct", RIGHT), ("incorrect", WRONG)):
        rows = [judged_row(text, 1, f"caption {number}") for number in range(20)]
        write_lines(tmp_path / f"{side}.jsonl", [rows[0] | {"model": "trained"}, *rows[1:]])
    argv = flags(tmp_path, "--no-balance-positions", "--trained-model")
    joined = run_join(tmp_path / "joined", list(shares(tmp_path, [*argv, "trained"], 2)))
    assert (joined["trained_model"], joined["right_rows_of_trained_model"]) == ("trained", 1)
    told = capsys.readouterr().err
    assert told.count("no row of --correct is by 'trained'; there are 'model-a'.") == 1
    folders = list(shares(tmp_path, [*argv, "trainde"], 2))
    with pytest.raises(UserError, match="no row of --correct is by 'trainde' in any share"):
        run_join(tmp_path / "joined", folders)


def test_plots_of_an_earlier_merge_go(tmp_path, folders):
    (tmp_path / "joined/plots").mkdir(parents=True)
    (tmp_path / "joined/plots/pass_rate.png").write_bytes(b"")
    run_join(tmp_path / "joined", folders)
    assert not list((tmp_path / "joined/plots").iterdir())


def test_shares_may_be_named_in_yaml(tmp_path, folders):
    path = tmp_path / "join.yaml"
    path.write_text(json.dumps({"join": list(map(str, folders)), "out": str(tmp_path / "joined")}))
    command = [sys.executable, "scripts/merge_json.py", f"--config={path}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "joined/summary.json").read_text())["shares"]) == 3


def test_the_joined_rows_may_have_another_form(tmp_path, folders):
    summary = run_join(tmp_path / "joined", folders, "--form", "swift")
    rows = read_lines(tmp_path / "joined/train.jsonl")
    assert summary["settings"]["form"] == "swift"
    assert len(rows) == summary["pairs"]
    assert all(isinstance(row["messages"], list) for row in rows)


def test_a_share_is_no_place_for_all(folders):
    with pytest.raises(UserError, match="is one of the shares"):
        run_join(folders[0], folders)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard", "0/4"), "0/4 is no share"),
        (("--shard", "5/4"), "5/4 is no share"),
        (("--shard", "x"), "'x' is no share"),
        (("--shard", "1/4", "--eval-fraction", "0.1"), "--eval-fraction does not go with --shard"),
        (("--shard", "1/4", "--source-weights", "s=1"), "--source-weights does not go with"),
        (
            ("--shard", "1/4", "--pair-from", "both", "--published-share", "0.5"),
            "--published-share does not go with --shard",
        ),
        (("--shard", "1/4", "--form", "trl"), "--form trl does not go with --shard"),
        (("--shard", "1/4", "--pair-from", "both"), "needs --trained-model"),
        (("--shard", "1/4", "--same-model", "prefer", "--pair-from", "published"), "says"),
        (("--shard", "1/4", "--pair-from", "published"), "needs --trained-model"),
    ],
)
def test_what_a_share_cannot_know_is_refused(tmp_path, more, message):
    argv = list(map(str, [*flags(tmp_path), "--out", tmp_path / "out", *more]))
    with pytest.raises(UserError, match=message):
        settings.parse(MergeSettings, "", argv=argv)


@pytest.mark.parametrize(("limit", "fails"), [("0.2", False), ("0.05", True)])
def test_bad_rows_of_a_share_are_measured_as_those_of_all(tmp_path, limit, fails):
    """A tenth of the rows is bad and has no key: every share counts them, among all rows."""
    for side, text in (("correct", RIGHT), ("incorrect", WRONG)):
        rows = [judged_row(text, 1, f"caption {number}") for number in range(90)]
        write_lines(tmp_path / f"{side}.jsonl", [*rows, *["no row"] * 10])
    argv = [*flags(tmp_path), "--max-bad-rows", limit, "--shard", "1/8"]
    if fails:
        with pytest.raises(UserError, match="rows are bad, more than --max-bad-rows"):
            run_merge(tmp_path / "out", argv)
    else:
        run_merge(tmp_path / "out", argv)
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        assert summary["correct_side"]["bad"] == 10
        assert summary["correct_side"]["of_other_shares"] > 60
