"""scripts/prepare_data.py convert: rows of any form, their media, bad rows, a second start."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.media.images import load_image
from cot_reward.media.video import frame_numbers
from cot_reward.preparing.convert import convert
from cot_reward.preparing.settings import ConvertSettings
from cot_reward.records import Comparison
from cot_reward.rows.adapters import adapter_for
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row, read_lines, write_lines, write_rows
from helpers.videos import shade, video
from pyarrow import parquet

MAP = ["--map", "text=prompt", "first=a", "second=b", "label=pref"]
IMAGES = ["--task", "image_generation"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media root with pictures 0.png to 9.png and videos 0.mp4 to 2.mp4."""
    for number in range(10):
        picture(tmp_path / f"media/{number}.png", (number, 90, 20 * number))
    for number in range(3):
        video(tmp_path / f"media/{number}.mp4", range(10 * number, 200, 10))
    return tmp_path / "media"


def argv(root: Path, files: list[Path], *flags: object) -> list[str]:
    given = ["--media-root", root, "--out", root / "out", "--workers", 4, *flags]
    return list(map(str, [*files, *given]))


def call(root: Path, rows: list[Any] | Path, *flags: object) -> int:
    """Convert; flags as on the command line. Raises UserError."""
    file = rows if isinstance(rows, Path) else write_rows(root.parent / "raw.json", rows)
    return convert(settings.parse(ConvertSettings, "", argv=argv(root, [file], *flags)))


def written(root: Path, folder: str = "out") -> list[dict[str, Any]]:
    files = sorted((root / folder).glob("rows-*.jsonl"))
    return [row for file in files for row in read_lines(file)]


def comparisons(root: Path) -> list[Comparison]:
    """The written rows as the client reads them."""
    rows = written(root)
    read = adapter_for(rows[0], None)
    return [read(row, "") for row in rows]


def summary(root: Path) -> dict[str, Any]:
    return json.loads((root / "out/summary.json").read_text())


def pref(a: Any, b: Any, label: Any = "a", **other: Any) -> dict[str, Any]:
    return {"prompt": "a cat", "a": a, "b": b, "pref": label} | other


LABELS = ["--labels", "a=1", "b=2", "same=tie"]


def test_a_mapped_file_is_comparisons_in_its_order(root: Path) -> None:
    rows = [pref("0.png", "1.png"), pref("2.png", "3.png", "same"), pref("4.png", "5.png", "b")]
    assert call(root, rows, *MAP, *LABELS, *IMAGES) == 0
    assert [(c.text, c.candidates, c.label) for c in comparisons(root)] == [
        ("a cat", ("0.png", "1.png"), 1), ("a cat", ("4.png", "5.png"), 2),
    ]  # fmt: skip
    assert [row["origin"].rpartition(":")[2] for row in written(root)] == ["1", "3"]
    found = summary(root)
    assert (found["rows"], found["written"], found["ties"], found["bad"]) == (3, 2, 1, {})
    assert found["first_is_better"] == 1


def test_known_forms_need_no_map(root: Path) -> None:
    rows = [raw_row("a cat", ["0.png", "1.png"], 2)]
    assert call(root, rows) == 0
    (found,) = comparisons(root)
    assert (found.task, found.label) == ("image_generation", 2)
    ours = [
        {"task": "image_editing", "text": "make it red", "candidates": ["0.png", "1.png"],
         "context": ["2.png"], "label": 1},
        {"task": "video_generation", "text": "a cat", "candidates": ["0.mp4", "1.mp4"], "label": 2},
    ]  # fmt: skip
    assert call(root, ours, "--out", root / "ours") == 0
    edit, clip = written(root, "ours")
    assert (edit["context"], edit["candidates"]) == (["2.png"], ["0.png", "1.png"])
    assert [len(frames) for frames in clip["candidates"]] == [8, 8]


def test_pictures_in_the_rows_become_files_of_their_content(root: Path) -> None:
    data = [(root / f"{number}.png").read_bytes() for number in range(3)]
    rows = [
        pref({"bytes": data[0], "path": "x"}, {"bytes": data[1], "path": "../../evil.png"}),
        pref({"bytes": data[0], "path": "y"}, {"bytes": data[2], "path": None}, "b"),
    ]
    path = root.parent / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert call(root, path, *MAP, *LABELS, *IMAGES) == 0
    one, two = comparisons(root)
    assert one.candidates[0] == two.candidates[0]
    shown = [one.candidates[0], one.candidates[1], two.candidates[1]]
    assert [(root / str(name)).read_bytes() for name in shown] == data
    assert len(list((root / "media").rglob("*.png"))) == 3
    assert not list(root.parent.rglob("evil.png"))


def test_videos_become_frames_whatever_they_are_given_as(root: Path) -> None:
    for number in range(12):
        picture(root / f"folder/{number:02}.png", (number, 0, 0))
    names = [f"folder/{number:02}.png" for number in range(12)]
    rows = [pref("0.mp4", "1.mp4"), pref("folder", "1.mp4"), pref(names, names[::-1], "b")]
    assert call(root, rows, *MAP, *LABELS, "--task", "video_generation", "--frames", 4) == 0
    file, folder, listed = comparisons(root)
    assert all(len(side) == 4 for c in (file, folder, listed) for side in c.candidates)
    assert folder.candidates[1] == file.candidates[1]
    assert (
        folder.candidates[0]
        == listed.candidates[0]
        == tuple(names[number] for number in frame_numbers(12, 4))
    )
    seen = [shade(load_image(root / name)) for name in file.candidates[0]]
    assert seen == pytest.approx([10 * number for number in frame_numbers(20, 4)], abs=4)


def test_a_question_about_a_video_has_its_frames_as_context(root: Path) -> None:
    rows = [{"q": "What moves?", "v": "0.mp4", "x": "A cat.", "y": "A dog.", "pref": "a"}]
    columns = ["--map", "text=q", "first=x", "second=y", "context=v", "label=pref"]
    assert call(root, rows, *columns, *LABELS, "--task", "video_understanding") == 0
    (found,) = comparisons(root)
    assert (found.candidates, len(found.context)) == (("A cat.", "A dog."), 8)


def test_a_label_that_never_changes_gives_no_position_away(root: Path) -> None:
    rows = [pref("0.png", "1.png", prompt=f"caption {number}") for number in range(200)]
    columns = [*MAP[:-1], "label=const:1"]
    assert call(root, rows, *columns, *IMAGES) == 0
    found = comparisons(root)
    assert {c.candidates[c.label - 1] for c in found} == {"0.png"}
    assert 70 < sum(c.label == 1 for c in found) < 130
    assert call(root, rows, *columns, *IMAGES, "--out", root / "again") == 0
    assert written(root, "again") == written(root)


def ranked(group: int, ranks: list[Any]) -> list[dict[str, Any]]:
    return [
        {"id": group, "prompt": f"caption {group}", "img": f"{number}.png", "rank": rank}
        for number, rank in enumerate(ranks)
    ]


RANKED = ["--map", "text=prompt", "medium=img", "group=id", "rank=rank"]


def test_ranked_candidates_become_all_pairs_that_differ(root: Path) -> None:
    rows = ranked(1, [1, 3, 2, 2]) + ranked(2, [1, None, 2])
    assert call(root, rows, *RANKED, *IMAGES, "--max-bad-rows", 1) == 0
    better = {
        (c.text, c.candidates[c.label - 1], c.candidates[2 - c.label]) for c in comparisons(root)
    }
    one, two = "caption 1", "caption 2"
    assert better == {
        (one, "0.png", "1.png"), (one, "0.png", "2.png"), (one, "0.png", "3.png"),
        (one, "2.png", "1.png"), (one, "3.png", "1.png"), (two, "0.png", "2.png"),
    }  # fmt: skip
    assert (summary(root)["ties"], summary(root)["bad"]) == (1, {"bad_record": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "its group is missing"),
        ({"id": ""}, "its group is missing"),
        ({"prompt": "another"}, "rows of group 1 have different texts"),
    ],
)
def test_rows_of_several_prompts_are_no_group(
    root: Path, capsys: Any, change: dict[str, Any], message: str
) -> None:
    odd = ranked(1, [1, 2])
    odd[1] |= change
    odd.append(odd[1] | {"img": "7.png", "rank": 5})
    assert call(root, [*odd, *ranked(2, [1, 2])], *RANKED, *IMAGES) == 3
    assert [row["text"] for row in written(root)] == ["caption 2"]
    assert message in capsys.readouterr().err


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(root: Path) -> None:
    for number in range(1, 13):
        picture(root / f"clip/{number}.png", (number, 0, 0))
    picture(root / "clip/.hidden.png")
    rows = [pref("clip", "0.mp4")]
    flags = ["--task", "video_generation", "--frames", 12]
    assert call(root, rows, *MAP, *LABELS, *flags) == 0
    assert written(root)[0]["candidates"][0] == [f"clip/{n}.png" for n in range(1, 13)]


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        (pref("0.mp4", "1.png"), "image_generation", "0.mp4 is a video, and an image is needed"),
        (pref(["0.mp4", "1.mp4"], "0.mp4"), "video_generation", "is a video, and an image is"),
        (pref("0.png", "0.mp4"), "video_generation", "is a picture, and a video is needed"),
        ({"task": "image_generation", "text": "a", "candidates": ["0.png", "1.png", "2.png"],
          "label": 1}, None, "'candidates' must be a list of two"),
        ({"task": "image_editing", "text": "a", "candidates": ["0.png", "1.png"], "label": 1,
          "context": ["2.png", "3.png"]}, None, "one source image"),
    ],
)  # fmt: skip
def test_media_of_another_kind_or_number_are_refused(
    root: Path, row: dict[str, Any], task: str | None, message: str
) -> None:
    good = {"task": "image_generation", "text": "a", "candidates": ["4.png", "5.png"], "label": 1}
    flags = [*MAP, *LABELS, "--task", task] if task else []
    fine = [] if task else [good]
    data = [*fine, row]
    if task:
        with pytest.raises(UserError, match="1 x bad_record"):
            call(root, data, *flags)
        return
    assert call(root, data, *flags) == 3
    (bad,) = read_lines(root / "out/bad_rows.jsonl")
    assert message in bad["detail"]


def test_a_limit_does_not_hide_labels_of_no_meaning(root: Path) -> None:
    rows = [pref("0.png", "1.png", 1), pref("2.png", "3.png", "A"), pref("4.png", "5.png", 1)]
    with pytest.raises(UserError, match="not known which candidate a label of A"):
        call(root, rows, *MAP, *IMAGES, "--limit", 2, "--max-bad-rows", 1)
    assert not list((root / "out").glob("rows-*"))
    with pytest.raises(UserError, match="--limit must be 1 or more"):
        call(root, rows, *MAP, *IMAGES, "--limit", 0)


def test_a_row_of_another_form_costs_only_itself(root: Path) -> None:
    rows = [raw_row("a", ["0.png", "1.png"]), {"a": 1}, raw_row("b", ["2.png", "3.png"])]
    assert call(root, rows) == 3
    assert [row["text"] for row in written(root)] == ["a", "b"]


def test_values_of_odd_types_are_bad_rows_at_most(root: Path) -> None:
    from decimal import Decimal

    rows = [pref("0.png", "1.png", Decimal(1)), pref("2.png", "3.png", Decimal(2))]
    path = root.parent / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert call(root, path, *MAP, *IMAGES) == 0
    long = [pref("0.mp4", "x" * 5000), pref("0.mp4", "1.mp4")]
    flags = [*MAP, *LABELS, "--task", "video_generation", "--out", root / "long"]
    assert call(root, long, *flags) == 3
    scores = [{"prompt": "a", "a": "0.png", "b": "1.png", "s": 10**400, "t": 1}, *(
        [{"prompt": "a", "a": "0.png", "b": "1.png", "s": 3, "t": 1}]
    )]  # fmt: skip
    columns = [*MAP[:4], "first_score=s", "second_score=t"]
    assert call(root, scores, *columns, *IMAGES, "--out", root / "scores") == 3


def test_fewer_pairs_of_a_group_are_the_same_in_every_run(root: Path) -> None:
    rows = [row for group in range(5) for row in ranked(group, [1, 2, 3, 4, 5])]
    assert call(root, rows, *RANKED, *IMAGES, "--group-pairs", 3) == 0
    assert Counter(row["text"] for row in written(root)) == Counter(
        {f"caption {group}": 3 for group in range(5)}
    )
    assert call(root, rows, *RANKED, *IMAGES, "--group-pairs", 3, "--out", root / "again") == 0
    assert written(root, "again") == written(root)


def test_a_group_whose_rows_stand_apart_is_told(root: Path, capsys: Any) -> None:
    rows = ranked(1, [1, 2]) + ranked(2, [1, 2]) + ranked(1, [0, 0, 2, 3])[2:]
    assert call(root, rows, *RANKED, *IMAGES) == 3
    assert "rows of group 1 stand apart; sort the file by its groups" in capsys.readouterr().err
    assert call(root, rows, *RANKED, *IMAGES, "--groups-apart", "--out", root / "apart") == 0
    together = [row for row in rows if row["id"] == 1] + ranked(2, [1, 2])
    assert call(root, together, *RANKED, *IMAGES, "--out", root / "together") == 0
    apart = [{**row, "origin": ""} for row in written(root, "apart")]
    assert apart == [{**row, "origin": ""} for row in written(root, "together")]
    assert len(apart) == 6


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (pref("0.png", "gone.png"), "missing", "no such file"),
        (pref("0.png", "../0.png"), "escapes", "leads out of the image root"),
        (pref("0.png", "/etc/passwd"), "escapes", "it is absolute"),
        (pref("0.png", "https://a.b/c.png"), "bad_record", "an address"),
        (pref("0.png", "data:image/png;base64,AAAA"), "not_an_image", "3 bytes that are no image"),
        (pref("0.png", 7), "bad_record", "must be a string, not 7"),
        (pref("0.png", "0.png"), "bad_record", "both candidates are the same"),
        (pref("0.png", "1.png", None), "bad_record", "the label is missing"),
        (pref("0.png", "1.png", prompt=None), "bad_record", "'prompt' must be a text"),
        (pref("0.png", "1.png", prompt="a <image>"), "bad_record", "holds <image>"),
        ({"prompt": "a"}, "bad_record", "has no 'a'; its columns are prompt"),
        ("text", "bad_record", "not an object"),
    ],
)
def test_a_bad_row_is_named_and_costs_only_itself(
    root: Path, capsys: Any, row: Any, reason: str, message: str
) -> None:
    good = pref("2.png", "3.png")
    path = write_rows(root.parent / "raw.json", [good, row, good])
    assert call(root, path, *MAP, *LABELS, *IMAGES) == 3
    assert len(written(root)) == 2
    (bad,) = read_lines(root / "out/bad_rows.jsonl")
    assert bad["where"].endswith("raw.json:2")
    assert (bad["reason"], message in bad["detail"]) == (reason, True), bad
    told = capsys.readouterr()
    assert "raw.json:2: " in told.err
    assert f"1 x {reason}" in told.out
    # A second start is no more of a success than the first one.
    assert call(root, path, *MAP, *LABELS, *IMAGES, "--workers", 2) == 3
    assert call(root, path, *MAP, *LABELS, *IMAGES, "--max-bad-rows", 0.5) == 0


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        ([*MAP, *LABELS], [pref("0.png", "1.png")], "names no task; name it with --task"),
        ([*MAP, *IMAGES], [pref("0.png", "1.png")], "it is not known which candidate a label of a"),
        (IMAGES, [pref("0.png", "1.png")], "say with --map where the comparison stands"),
        ([*MAP, *LABELS, *IMAGES], [pref("x.png", "y.png")] * 3, "in 3 rows\n  3 x mi"),
        ([*MAP, *LABELS, "--task", "image_editing"], [pref("0.png", "1.png")], "needs context=COL"),
        (
            [*MAP, "context=c", *LABELS, *IMAGES],
            [pref("0.png", "1.png", c="2.png")],
            "has no context; leave",
        ),
        ([*MAP, *LABELS, "--task", "video_generation"], [pref("0.png", "1.png")], "is a picture"),
        ([*MAP, *LABELS, "--task", "videos"], [pref("0.png", "1.png")], "task is called 'videos'"),
        ([*MAP, *LABELS, *IMAGES, "--frames", 1], [], "--frames must be 2 or more"),
    ],
)  # fmt: skip
def test_what_makes_no_comparison_is_told(
    root: Path, capsys: Any, flags: list[Any], rows: list[Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        call(root, rows or [pref("0.png", "1.png")], *flags)
    assert message in f"{caught.value}{capsys.readouterr().err}"
    assert not (root / "out/summary.json").exists()


def test_a_medium_is_one_file_for_all_data_sets(root: Path) -> None:
    """So that a held-out comparison is known again, wherever it was converted to."""
    data = {"bytes": (root / "0.png").read_bytes(), "path": None}
    path = root.parent / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([pref(data, "1.png")]), path)
    assert call(root, path, *MAP, *LABELS, *IMAGES) == 0
    assert call(root, path, *MAP, *LABELS, *IMAGES, "--out", root / "other") == 0
    video_task = ["--task", "video_generation"]
    for out in ("v1", "v2"):
        rows = [pref("0.mp4", "1.mp4")]
        assert call(root, rows, *MAP, *LABELS, *video_task, "--out", root / out) == 0
    assert written(root) == written(root, "other")
    assert written(root, "v1") == written(root, "v2")


def test_files_that_no_conversion_wrote_are_not_replaced(root: Path) -> None:
    (root / "own").mkdir()
    own = write_lines(root / "own/rows-train.jsonl", [pref("0.png", "1.png")])
    with pytest.raises(UserError, match=r"rows-train.jsonl: was not written by a conversion"):
        call(root, own, *MAP, *LABELS, *IMAGES, "--out", root / "own")
    assert read_lines(own) == [pref("0.png", "1.png")]


def test_media_lie_below_the_media_root(root: Path) -> None:
    with pytest.raises(UserError, match="is not inside --media-root"):
        call(root, [pref("0.png", "1.png")], *MAP, *LABELS, *IMAGES, "--image-root", root.parent)


def test_a_second_start_finds_its_results_and_no_other_ones(root: Path, capsys: Any) -> None:
    rows = [pref("0.png", "1.png"), pref("2.png", "3.png", "b")]
    path = write_rows(root.parent / "raw.json", rows)
    assert call(root, path, *MAP, *LABELS, *IMAGES) == 0
    before = (root / "out/rows-00000.jsonl").stat().st_mtime_ns
    assert call(root, path, *MAP, *LABELS, *IMAGES, "--workers", 1) == 0
    assert "already converted" in capsys.readouterr().out
    assert (root / "out/rows-00000.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds comparisons of other files or settings"):
        call(root, path, *MAP, "--labels", "a=2", "b=1", *IMAGES)
    write_rows(path, rows[:1])
    with pytest.raises(UserError, match="holds comparisons of other files or settings"):
        call(root, path, *MAP, *LABELS, *IMAGES)


def test_rows_are_cut_into_files_and_a_limit_holds(root: Path) -> None:
    rows = [pref("0.png", "1.png", prompt=f"caption {number}") for number in range(10)]
    assert call(root, rows, *MAP, *LABELS, *IMAGES, "--shard-rows", 3, "--limit", 7) == 0
    names = sorted(file.name for file in (root / "out").glob("rows-*"))
    assert names == [f"rows-{number:05}.jsonl" for number in range(3)]
    assert [row["text"] for row in written(root)] == [f"caption {number}" for number in range(7)]


def _frame_count(root: Path) -> int:
    # Folders come and go while it counts.
    return sum(len(files) for _, _, files in os.walk(root / "frames"))


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(root: Path) -> None:
    """The kill comes while videos are decoded; frames that are there are not made again."""
    for number in range(40):
        video(root / f"many/{number}.mp4", range(number, 200, 5))
    rows = [pref(f"many/{n}.mp4", f"many/{n + 1}.mp4", prompt=f"{n}") for n in range(39)]
    path = write_lines(root.parent / "raw.jsonl", rows)
    flags = [*MAP, *LABELS, "--task", "video_generation"]
    command = [sys.executable, "scripts/prepare_data.py", "convert", *argv(root, [path], *flags)]
    running = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL)
    while running.poll() is None and _frame_count(root) < 60:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert not (root / "out/summary.json").exists()
    made = {file: file.stat().st_mtime_ns for file in root.glob("frames/*/*/*.jpg")}
    assert made
    subprocess.run(command, cwd=REPO, check=True)
    assert len(written(root)) == 39
    assert all(file.stat().st_mtime_ns == when for file, when in made.items())
    assert call(root, path, *flags, "--out", root / "whole") == 0
    assert written(root, "whole") == written(root)
