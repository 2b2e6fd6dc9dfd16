"""--exclude: held-out comparisons are never asked, and leave the files of an earlier start."""

import json
import signal

import pytest
from cot_reward.errors import UserError
from helpers.rows import judged_row, raw_row, read_lines, write_lines

ONE = ("--num-samples", 1)


def held_out(world, *numbers, name="held_out.json"):
    path = world.out.with_name(name)
    path.write_text(json.dumps([world.rows[number] for number in numbers]))
    return path


def test_held_out_comparisons_are_never_asked_and_are_counted(world, server, capsys):
    path = held_out(world, 1)
    # The same comparison in the other order is the same, and stands there twice.
    world.rows.append(raw_row("caption 1", world.rows[1]["images"][::-1], label=1))
    assert world.call("--num-samples", 2, "--exclude", path) == 0
    assert {entry["caption"] for entry in server.log()} == {"caption 0", "caption 2"}
    assert {row["id"] for row in world.judged} == {world.key(0), world.key(2)}
    summary = world.summary
    assert summary["account"] == {
        "expected": 12, "judged": 8, "failed": 0, "excluded": 4, "not_asked": 0,
    }  # fmt: skip
    assert summary["excluded_comparisons"] == {str(path): 1}
    assert summary["same_pictures_as_excluded"] == {str(path): 0}
    told = capsys.readouterr()
    assert f"1 comparisons of {path} were left out" in told.out
    assert "8 judged of 12, 0 failed, 4 held out, 0 not asked" in told.out
    assert "warning" not in told.err


@pytest.mark.parametrize("form", ["raw", "judged", "comparison", "key", "pair"])
def test_a_held_out_file_may_have_any_form(world, server, form):
    images = [f"images/{name}" for name in world.rows[0]["images"]]
    row = {
        "raw": world.rows[0],
        "judged": judged_row("x", caption="caption 0", images=images),
        "comparison": {"text": "caption 0", "candidates": world.rows[0]["images"][::-1]},
        "key": {"id": world.key(0)},
        "pair": {
            "problem": "<image><image>Judge. Text Caption: [caption 0]", "images": images,
            "chosen": "a", "rejected": "b",
        },
    }[form]  # fmt: skip
    path = write_lines(world.out.with_name("held_out.jsonl"), [row])
    assert world.call(*ONE, "--exclude", path) == 0
    assert {entry["caption"] for entry in server.log()} == {"caption 1", "caption 2"}


def test_the_root_of_a_held_out_file_is_its_own_where_it_is_given(world, server, capsys):
    path = held_out(world, 0)
    other = world.media / "other"
    other.mkdir()
    assert world.call(*ONE, "--exclude", path, "--exclude-image-root", other) == 0
    assert len(server.log()) == 6
    assert world.summary["excluded_comparisons"] == {str(path): 0}
    # Only a file that meets nothing is warned of, by the sentence of the merger.
    told = capsys.readouterr().err
    assert f"warning: --exclude {path}: none of its comparisons is among the data, and its" in told
    with pytest.raises(UserError, match="names 2 folders for 1 files or globs of --exclude"):
        world.call("--exclude", path, "--exclude-image-root", other, other)


def test_the_same_pictures_under_another_caption_are_told_of(world, capsys):
    world.rows.append(raw_row("Caption 0", world.rows[0]["images"]))
    path = held_out(world, 3)
    world.rows.pop()
    assert world.call(*ONE, "--exclude", path) == 0
    assert world.summary["same_pictures_as_excluded"] == {str(path): 1}
    assert world.summary["account"]["judged"] == 6
    assert "1 comparisons of the data show the same pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a cat"}]', r"held_out\.json:1: .*--exclude needs every row"),
        ('[{"id": "' + "0" * 64 + '"}', r"held_out\.json:1: not a complete JSON list"),
    ],
)
def test_a_held_out_row_that_cannot_be_read_stops_the_run(world, server, text, message):
    path = world.out.with_name("held_out.json")
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        world.call("--exclude", path)
    assert server.log() == []


def test_a_held_out_file_that_the_run_would_replace_is_refused(world):
    """Its own rows would leave it, and the next start would ask about them."""
    assert world.call(*ONE) == 0
    path = world.out / "correct.jsonl"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"correct\.jsonl: a run into --out .* replaces this file"):
        world.call(*ONE, "--exclude", path)
    assert path.read_bytes() == before
    copy = world.out.with_name("held_out.jsonl")
    copy.write_bytes(before)
    assert world.call(*ONE, "--exclude", copy) == 0
    assert path.read_bytes() == b""


def test_data_that_are_held_out_altogether_are_an_error(world):
    path = held_out(world, 0, 1, 2)
    with pytest.raises(
        UserError, match=r"no usable comparison, 0 bad, 3 held out \(--exclude\) of"
    ):
        world.call("--exclude", path)


def test_another_exclude_is_followed_in_the_same_folder(world, server, capsys):
    """The journal keeps every response; the other files follow the flag."""
    assert world.call(*ONE) == 0
    before, journal = world.judged, (world.out / "journal.jsonl").read_bytes()
    server.configure()
    path = held_out(world, 0)
    assert world.call(*ONE, "--exclude", path) == 0
    assert world.judged == [row for row in before if row["id"] != world.key(0)]
    assert "2 responses of earlier starts are about comparisons that are held" in (
        capsys.readouterr().err
    )
    # The name of the file is the same, and its rows are others.
    held_out(world, 1, 2)
    assert world.call(*ONE, "--exclude", path) == 0
    assert world.judged == [row for row in before if row["id"] == world.key(0)]
    assert world.call(*ONE) == 0
    assert world.judged == before
    assert "excluded" not in world.summary["account"]
    assert server.log() == []
    assert (world.out / "journal.jsonl").read_bytes() == journal


def test_failed_requests_of_held_out_comparisons_leave_failed_jsonl(world, server):
    server.configure(faults=[{"kind": "status", "status": 400, "caption": "caption 0"}])
    assert world.call(*ONE) == 0
    assert {row["id"] for row in world.read("failed")} == {world.key(0)}
    assert world.call(*ONE, "--exclude", held_out(world, 0)) == 0
    assert world.read("failed") == []
    assert world.summary["account"]["failed"] == 0


@pytest.mark.slow
def test_a_start_that_is_killed_leaves_no_held_out_row(world, server):
    """The rows of the earlier start are taken away before anything is asked."""
    assert world.call(*ONE) == 0
    path = held_out(world, 0)
    world.rows.append(raw_row("caption 3", ["0a.png", "1b.png"]))
    server.configure(faults=[{"kind": "hang", "caption": "caption 3"}])
    process = world.start(*ONE, "--exclude", path)
    server.wait_for(1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert {row["id"] for row in world.judged} == {world.key(1), world.key(2)}
    assert not (world.out / "summary.json").exists()
    server.configure()
    assert world.call(*ONE, "--exclude", path) == 0
    assert len(server.log()) == 2


def test_judged_rows_of_held_out_comparisons_are_not_asked_again(world, server):
    """A second pass over files that an earlier version made."""
    assert world.call(*ONE) == 0
    files = [world.out / f"{name}.jsonl" for name in ("correct", "incorrect", "unusable")]
    every = [row for file in files for row in read_lines(file)]
    pool = write_lines(world.out.with_name("pool.jsonl"), every)
    server.configure()
    world.out = world.out.with_name("second")
    flags = ["--data", pool, "--out", world.out, "--exclude", held_out(world, 2)]
    assert world.call(*ONE, *flags) == 0
    assert {entry["caption"] for entry in server.log()} == {"caption 0", "caption 1"}
    assert world.summary["account"]["excluded"] == 2
