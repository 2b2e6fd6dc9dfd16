"""Shares of a run on several machines, and the one folder that they become."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.gather import GatherSettings, gather
from cot_reward.tasks.prompts import read_templates
from helpers.client_world import World
from helpers.environments import REPO
from helpers.rows import read_lines
from helpers.server import MockServer

FILES = ("correct", "incorrect", "unusable", "failed")
FLAGS = ["--num-samples", 2]
COUNT = 3


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Comparisons with all that may be wrong, asked without shares and in shares."""
    folder = tmp_path_factory.mktemp("gather")
    with MockServer() as server:
        world = World(folder, server, count=20)
        # A duplicate in the other order, a record that cannot be used, a missing picture.
        world.rows.append(world.rows[3])
        world.rows.insert(2, {"prompt": "no pictures", "images": [], "conversations": []})
        (world.media / "images/5a.png").unlink()
        failing = {"caption": "caption 7", "kind": "status", "status": 400}
        server.configure(faults=[failing])
        assert world.call(*FLAGS, "--out", folder / "plain") == 0
        for number in range(1, COUNT + 1):
            share = ["--shard", f"{number}/{COUNT}", "--out", folder / f"share-{number}"]
            assert world.call(*FLAGS, *share) == 0
        world.folder = folder
        yield world


@pytest.fixture
def shares(ready: World, tmp_path: Path) -> list[Path]:
    """The folders of the shares, to be changed at will."""
    made = []
    for number in range(1, COUNT + 1):
        made.append(tmp_path / f"share-{number}")
        shutil.copytree(ready.folder / f"share-{number}", made[-1])
    return made


def test_shares_are_disjoint_and_become_the_folder_of_one_run(ready, shares, tmp_path):
    keys = [{row["key"] for row in read_lines(share / "journal.jsonl")} for share in shares]
    assert all(keys)
    assert sum(map(len, keys)) == len(set.union(*keys)) == 20
    plain = ready.folder / "plain"
    out = tmp_path / "whole"
    # In any order of the folders, and again.
    for given in (shares[::-1], shares):
        assert gather(GatherSettings(given, out)) == 0
        assert contents(out) == contents(plain)
    found, wanted = (json.loads((f / "summary.json").read_text()) for f in (out, plain))
    for name in ("account", "files", "failed_reasons", "accuracy", "usable_pairs", "duplicates",
                 "prompt_tokens", "completion_tokens"):  # fmt: skip
        assert found[name] == wanted[name], name
    assert found["account"]["failed"] > 0
    assert found["settings"]["shard"] is None


def test_a_gathered_folder_can_be_extended_by_the_client(ready, shares, tmp_path):
    out = tmp_path / "whole"
    assert gather(GatherSettings(shares, out)) == 0
    with MockServer() as server:
        ready.server, before = server, ready.server
        assert ready.call("--num-samples", 3, "--out", out) == 0
        ready.server = before
        assert {entry["n"] for entry in server.log()} == {1}


def test_the_command_gathers(shares, tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/gather.py", *shares, "--out", tmp_path / "whole"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 not asked" in done.stdout


def test_a_share_without_a_comparison_is_one_all_the_same(tmp_path, server):
    world, count = World(tmp_path, server, count=3), 5
    folders = [tmp_path / f"share-{number}" for number in range(1, count + 1)]
    assert world.call(*FLAGS, "--out", tmp_path / "plain") == 0
    for number, folder in enumerate(folders, 1):
        assert world.call(*FLAGS, "--shard", f"{number}/{count}", "--out", folder) == 0
    accounts = [json.loads((f / "summary.json").read_text())["account"] for f in folders]
    empty = {"expected": 0, "judged": 0, "failed": 0, "not_asked": 0}
    assert accounts.count(empty) >= 2
    assert contents(folders[accounts.index(empty)]) == dict.fromkeys(FILES, b"")
    assert gather(GatherSettings(folders, tmp_path / "whole")) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "plain")
    # Where no share has one, the data are to blame.
    world.rows = []
    with pytest.raises(UserError):
        world.call(*FLAGS, "--shard", "1/2", "--out", tmp_path / "none")


def refused(shares: list[Path], out: Path) -> str:
    with pytest.raises(UserError) as error:
        gather(GatherSettings(shares, out))
    return str(error.value)


def change(share: Path, **settings: object) -> None:
    summary = json.loads((share / "summary.json").read_text())
    summary["settings"] |= settings
    (share / "summary.json").write_text(json.dumps(summary))


def test_what_is_no_whole_run_is_refused(ready, shares, tmp_path):
    out = tmp_path / "whole"
    assert "these are not all shares of one run, each once" in refused(shares[:2], out)
    assert "each once" in refused([*shares, shares[0]], out)
    assert "no share; it was asked without --shard" in refused([ready.folder / "plain"], out)
    assert "holds a run of its own" in refused(shares, ready.folder / "plain")
    change(shares[1], temperature=0.5)
    assert "temperature is 0.5 there and 1.0 here" in refused(shares, out)
    change(shares[1], temperature=1.0, served_model={"folder": None, "weights": "",
                                                     "answer": [["Image", -4.0, 1.5]]})  # fmt: skip
    assert "other weights under the same name" in refused(shares, out)
    # The first share told nothing: the others are compared all the same.
    change(shares[0], served_model={"folder": None, "weights": "", "answer": []})
    assert f"{shares[2]} holds responses of other weights" in refused(shares, out)
    (shares[1] / "summary.json").unlink()
    assert "its inference is not finished" in refused(shares, out)
    assert not (out / "summary.json").exists()


def test_a_journal_of_another_share_is_refused(shares, tmp_path):
    first, second = (share / "journal.jsonl" for share in shares[:2])
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert "which is not of share 1/3" in refused(shares, tmp_path / "whole")


@pytest.mark.parametrize(
    ("change_of_line", "words"),
    [
        ({"key": "zz"}, "its key is 'zz'"),
        ({"key": 5}, "its key is 5"),
        ({"text": None}, "its text is None"),
        (None, "its key is None"),
    ],
)
def test_a_damaged_line_is_named(shares, tmp_path, change_of_line, words):
    journal = shares[0] / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    at = next(number for number, line in enumerate(lines) if "text" in line)
    lines[at] = {} if change_of_line is None else lines[at] | change_of_line
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"{journal}:{at + 1}: no line of the client ({words}); remove" in refused(
        shares, tmp_path / "o"
    )


@pytest.mark.parametrize("settings", [{"shard": 5}, {"shard": "x"}, {"templates": None}])
def test_a_damaged_summary_is_named(shares, tmp_path, settings):
    change(shares[0], **settings)
    assert f"{shares[0] / 'summary.json'}: not what the client" in refused(shares, tmp_path / "o")


def test_what_a_killed_start_left_is_removed(shares, tmp_path):
    out = tmp_path / "whole"
    out.mkdir()
    left = out / ".journal.jsonl.abcd1234"
    left.write_text("half")
    assert gather(GatherSettings(shares, out)) == 0
    assert not left.exists()


def test_a_template_that_was_changed_since_is_refused(ready, tmp_path):
    template = tmp_path / "own.txt"
    template.write_text(read_templates([], "think")["image_generation"])
    shares = [tmp_path / "one", tmp_path / "two"]
    for number, share in enumerate(shares, 1):
        flags = ["--num-samples", 1, "--template", template, "--shard", f"{number}/2"]
        assert ready.call(*flags, "--out", share) == 0
    out = tmp_path / "whole"
    assert gather(GatherSettings(shares, out)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    template.write_text("Edited! " + template.read_text())
    message = refused(shares, out)
    assert f"--template {template}: the template of image_generation was changed" in message
    # Nothing is written before it is known.
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_units_that_are_missing_are_no_success(shares, tmp_path, capsys):
    journal = shares[2] / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    assert gather(GatherSettings(shares, tmp_path / "whole")) == 1
    assert "the account does not hold" in capsys.readouterr().err


def test_a_folder_is_one_share_for_good(ready, shares):
    # Finished: nothing is asked, and nothing changes.
    with pytest.raises(UserError, match=r"holds share 1/3, and --shard is 2/3; use another --out"):
        ready.call(*FLAGS, "--shard", "2/3", "--out", shares[0])
    with pytest.raises(UserError, match=r"holds share 1/3, and --shard is not given"):
        ready.call(*FLAGS, "--out", shares[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "4/3"], "--shard: 4/3 is no share"),
        (["--shard", "first"], "write I/N"),
        (["--shard", "1/2", "--limit", "5"], "drop --limit"),
        (["--shard", "1/2", "--data", "-"], "--shard needs files"),
    ],
)
def test_mistakes_are_named(ready, flags, message):
    with pytest.raises(UserError) as error:
        ready.call(*flags)
    assert message in str(error.value)


def test_bad_records_are_counted_over_all_shares(ready, tmp_path):
    """One bad record of 22 is a large part of a share, and a small one of the run."""
    for number in range(1, COUNT + 1):
        share = ["--shard", f"{number}/{COUNT}", "--out", tmp_path / f"share-{number}"]
        with pytest.raises(UserError, match="1 of 22 records are bad, more than --max-bad-rows"):
            ready.call(*FLAGS, *share, "--max-bad-rows", 0.04)
        assert ready.call(*FLAGS, *share, "--max-bad-rows", 0.05) == 0
