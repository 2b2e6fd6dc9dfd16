"""A dry run opens the images: it names bad records, counts them, and ends as a run would."""

import json

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.media_check import records_with_bad_media
from cot_reward.media.paths import LFS_POINTER, ImageRoots
from cot_reward.records import Comparison
from helpers.pictures import picture
from helpers.rows import raw_row

BAD = {
    "gone.png": "missing",
    "zero.png": "empty",
    "text.png": "not_an_image",
    "cut.png": "corrupt",
    "pointer.png": "lfs_pointer",
    "out.png": "escapes",
}


def break_images(folder):
    """A picture of each of `BAD`."""
    picture(folder.parent / "outside.png")
    whole = picture(folder / "whole.png").read_bytes()
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pointer.png").write_bytes(LFS_POINTER + b"v1")
    (folder / "out.png").symlink_to(folder.parent / "outside.png")


def counts_of(told):
    return json.JSONDecoder().raw_decode(told)[0]


def test_each_image_is_opened_and_every_record_of_a_bad_one_is_named(tmp_path):
    break_images(tmp_path / "media")
    with Ledger(None) as ledger:
        for number, name in enumerate([*BAD, *BAD, "whole.png"]):
            pair = (name, "whole.png") if number % 2 else ("whole.png", name)
            if name == "whole.png":
                pair = ("whole.png", "./x/../whole.png")
            ledger.add(Comparison("image_generation", f"c{number}", pair, 1), f"data:{number}")
        roots = ImageRoots(tmp_path / "media", [])
        found = [
            (bad["where"], bad["reason"]) for bad in records_with_bad_media(ledger, roots, 262144)
        ]
    assert found == [(f"data:{n}", reason) for n, reason in enumerate([*BAD.values()] * 2)]


def test_a_dry_run_names_and_counts_bad_records(world, server, capsys):
    break_images(world.media / "images")
    world.rows.append({"prompt": "no images"})
    world.rows += [raw_row(name, ["0a.png", name]) for name in BAD]
    assert world.call("--num-samples", 2, "--dry-run") == 0
    told = capsys.readouterr()
    counts = counts_of(told.out)
    assert (counts["records"], counts["comparisons"], counts["bad_records"]) == (10, 9, 7)
    assert counts["bad_record_reasons"] == {"bad_record": 1} | dict.fromkeys(BAD.values(), 1)
    # Responses: of 10 records, in 2 orders, 2 samples.
    assert (counts["expected"], counts["to_ask"], counts["will_fail"]) == (40, 36, 28)
    for number, reason in enumerate(["bad_record", *BAD.values()], 4):
        assert f"bad record: {world.data}:{number}: {reason}: " in told.err
    assert server.log() == []
    assert not world.out.exists()
    # As many as a run finds.
    assert world.call("--num-samples", 2) == 0
    assert world.summary["account"]["failed"] == 28
    reasons = {"bad_record": 4} | dict.fromkeys(BAD.values(), 4)
    assert world.summary["failed_reasons"] == reasons


def test_more_bad_records_than_allowed_end_a_dry_run_as_a_run(world, capsys):
    world.rows.append(raw_row("gone", ["0a.png", "gone.png"]))
    with pytest.raises(UserError) as error:
        world.call("--dry-run", "--max-bad-rows", 0.2)
    assert "0 of 4 records are bad, and 1 of 4 comparisons have an image" in str(error.value)
    assert f"The first: {world.data}:4: " in str(error.value)
    assert world.call("--dry-run", "--max-bad-rows", 0.25) == 0
    world.rows.append({"prompt": "no images"})
    with pytest.raises(UserError, match=r"1 of 5 records are bad, and 1 of 4 comparisons"):
        world.call("--dry-run", "--max-bad-rows", 0.25)
    capsys.readouterr()
    assert world.call("--dry-run", "--max-failed", 0.3) == 3
    told = "error: 16 of 40 responses would fail, more than --max-failed 0.3"
    assert told in capsys.readouterr().err


def test_bad_records_alone_end_a_dry_run_as_a_run(world):
    world.rows += [{"prompt": "no images"}]
    for flags in (["--dry-run"], []):
        with pytest.raises(UserError, match=r"1 of 4 records are bad, more than"):
            world.call(*flags, "--max-bad-rows", 0.2)


def test_a_dry_run_opens_the_records_of_the_limit(world, capsys):
    world.rows.append(raw_row("gone", ["0a.png", "gone.png"]))
    assert world.call("--dry-run", "--limit", 3, "--max-bad-rows", 0) == 0
    assert counts_of(capsys.readouterr().out)["bad_records"] == 0


def test_the_console_names_the_first_of_many_bad_records(world, capsys):
    world.rows += [raw_row(f"{n}", ["0a.png", f"gone{n}.png"]) for n in range(120)]
    assert world.call("--dry-run") == 0
    told = capsys.readouterr()
    assert told.err.count("bad record: ") == 50
    assert "... and 70 more bad records" in told.err
    assert counts_of(told.out)["bad_record_reasons"] == {"missing": 120}


def test_a_dry_run_counts_what_is_held_out(world, capsys):
    path = world.out.with_name("held_out.json")
    path.write_text(json.dumps(world.rows[:1]))
    assert world.call("--dry-run", "--num-samples", 1, "--exclude", path) == 0
    counts = counts_of(capsys.readouterr().out)
    assert counts["excluded_comparisons"] == {str(path): 1}
    assert (counts["expected"], counts["excluded"], counts["to_ask"]) == (6, 2, 4)
