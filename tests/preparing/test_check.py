"""scripts/prepare_data.py check: what it finds in data, and in what they share with others."""

from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.preparing.check import check
from cot_reward.preparing.settings import CheckSettings
from helpers.pictures import noise
from helpers.rows import raw_row, read_lines, write_rows
from PIL import Image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures 0.png to 7.png that differ; 0_again.png is 0.png, 0_small.jpg looks like it."""
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(8):
        noise("RGB", 8, 8, number).resize((160, 160), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    (folder / "0_again.png").write_bytes((folder / "0.png").read_bytes())
    with Image.open(folder / "0.png") as image:
        image.resize((120, 120)).save(folder / "0_small.jpg", quality=80)
    return folder


def row(first: str, second: str, label: int = 1, text: str = "a cat") -> dict[str, Any]:
    return {"task": "image_generation", "text": text, "candidates": [first, second], "label": label}


def run(root: Path, rows: list[Any], *flags: object) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was found."""
    data = write_rows(root.parent / "data.json", rows)
    out = root.parent / "found.jsonl"
    argv = [data, "--media-root", root, "--out", out, "--workers", 2, *flags]
    code = check(settings.parse(CheckSettings, "", argv=list(map(str, argv))))
    return code, read_lines(out)


def kinds(found: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(entry["kind"], int(entry["where"].rpartition(":")[2])) for entry in found]


def test_sound_data_are_clean(root: Path, capsys: Any) -> None:
    rows = [row("0.png", "1.png"), row("2.png", "3.png", 2), row("4.png", "5.png", 2, "a dog")]
    assert run(root, rows) == (0, [])
    told = capsys.readouterr().out
    assert "3 rows: 3 comparisons, 0 ties; 6 pictures" in told
    assert "image_generation: 3, the first candidate is better in 33.3%" in told
    assert "a picture is in at most 1 comparisons" in told


@pytest.mark.parametrize(
    ("second", "kind", "code"),
    [
        (row("1.png", "0.png", 2), "duplicate", 0),
        (row("0.png", "1.png", 1), "duplicate", 0),
        (row("0.png", "1.png", 2), "other_label", 1),
        (row("1.png", "0.png", 1), "other_label", 1),
        (row("0_again.png", "1.png"), "duplicate_content", 0),
        (row("1.png", "0_again.png", 2, "A cat!"), "duplicate_content", 0),
        (row("0_again.png", "1.png", 2), "other_label", 1),
        (row("0_small.jpg", "1.png"), "looks_alike", 0),
        (row("0.png", "0_again.png"), "same_picture", 1),
        (row("0.png", "gone.png"), "bad_medium", 1),
        (row("0.png", "0.png"), "bad_row", 1),
        (row("0.png", "../x.png"), "bad_row", 1),
    ],
)
def test_what_is_found(root: Path, second: dict[str, Any], kind: str, code: int) -> None:
    assert run(root, [row("0.png", "1.png"), second]) == (
        code,
        [{**found, "kind": kind} for found in run(root, [row("0.png", "1.png"), second])[1]],
    )
    assert kinds(run(root, [row("0.png", "1.png"), second])[1]) == [(kind, 2)]


def answers(first: str, second: str, label: int, context: str = "0.png") -> dict[str, Any]:
    return {"task": "image_understanding", "text": "What is it?", "candidates": [first, second],
            "label": label, "context": [context]}  # fmt: skip


def edit(label: int, context: str) -> dict[str, Any]:
    return {"task": "image_editing", "text": "red", "candidates": ["1.png", "2.png"],
            "label": label, "context": [context]}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([answers("x", "y", 1), answers("y", "x", 2)], [("duplicate", 2)]),
        ([answers("x", "y", 1), answers("y", "x", 1)], [("other_label", 2)]),
        ([answers("x", "y", 1), answers("y", "x", 1, "3.png")], []),
        ([edit(1, "0.png"), edit(2, "3.png")], []),
        ([edit(1, "0.png"), edit(2, "0_again.png")], [("other_label", 2)]),
    ],
)
def test_answers_and_edits_are_known_by_text_and_context(
    root: Path, rows: list[Any], wanted: list[Any]
) -> None:
    assert kinds(run(root, rows)[1]) == wanted


@pytest.mark.parametrize("label", ["tie", None, 0, 7])
def test_the_labels_of_held_out_files_do_not_matter(root: Path, label: Any) -> None:
    held_out = row("1.png", "0.png") | {"label": label}
    if label is None:
        del held_out["label"]
    against = write_rows(root.parent / "held_out.json", [held_out])
    code, found = run(root, [row("0.png", "1.png")], "--against", against)
    assert (code, kinds(found)) == (1, [("leak", 1)])


def test_held_out_files_have_a_root_of_their_own(root: Path) -> None:
    (root / "bench").mkdir()
    (root / "bench/p.png").write_bytes((root / "0.png").read_bytes())
    (root / "bench/q.png").write_bytes((root / "7.png").read_bytes())
    against = write_rows(root.parent / "held_out.json", [raw_row("other", ["p.png", "q.png"])])
    data = [row("0.png", "1.png")]
    flags = ["--against", against, "--against-image-root", root / "bench"]
    assert kinds(run(root, data, *flags)[1]) == [("leak", 1)]
    # Pictures that are not found could have been ours.
    code, found = run(root, data, "--against", against)
    assert (code, {kind for kind, _ in kinds(found)}) == (1, {"unread_held_out"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["none*.json"], r"--against none\*\.json: no file matches"),
        (["a", "b", "c", "--against-image-root", "x", "y"], "--against-image-root names 2 folders"),
        ([], "--against-image-root names 2 folders for 0 files or globs of --against"),
    ],
)
def test_errors_of_held_out_files_name_their_flag(
    root: Path, flags: list[str], message: str
) -> None:
    given = ["--against", *flags] if flags else ["--against-image-root", "x", "y"]
    with pytest.raises(UserError, match=message):
        run(root, [row("0.png", "1.png")], *given)


def test_a_held_out_row_that_cannot_be_read_is_an_error(root: Path) -> None:
    against = write_rows(root.parent / "held_out.json", [{"a": 1}])
    with pytest.raises(UserError, match="--against needs every row"):
        run(root, [row("0.png", "1.png")], "--against", against)


def test_other_texts_about_the_same_pictures_are_other_comparisons(root: Path) -> None:
    rows = [row("0.png", "1.png"), row("0.png", "1.png", 2, "a dog")]
    assert run(root, rows) == (0, [])


def test_plain_pictures_do_not_look_alike(root: Path) -> None:
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250)), ("grey", (9, 9, 9))):
        Image.new("RGB", (64, 64), colour).save(root / f"{name}.png")
    rows = [row("red.png", "blue.png"), row("red.png", "grey.png"), row("blue.png", "grey.png")]
    assert run(root, rows) == (0, [])


@pytest.mark.parametrize(
    ("held_out", "kind", "code"),
    [
        (row("1.png", "0.png", 2), "leak", 1),
        (row("0_again.png", "7.png", 1, "else"), "leak", 1),
        (row("0_small.jpg", "7.png", 1, "else"), "looks_like_held_out", 0),
        (row("6.png", "7.png", 1, "A  cat."), "held_out_text", 0),
    ],
)
def test_what_data_share_with_held_out_files(
    root: Path, held_out: dict[str, Any], kind: str, code: int
) -> None:
    against = write_rows(root.parent / "held_out.jsonl", [row("2.png", "3.png", 1, "x"), held_out])
    rows = [row("4.png", "5.png", 1, "a dog"), row("0.png", "1.png")]
    found_code, found = run(root, rows, "--against", against)
    assert (found_code, kinds(found)) == (code, [(kind, 2)])
    assert found[0]["detail"].endswith("held_out.jsonl:2")


def test_raw_rows_are_read_with_their_image_root(root: Path) -> None:
    rows = [raw_row("a cat", ["0.png", "1.png"]), raw_row("a dog", ["2.png", "3.png"], 2)]
    assert run(root, rows, "--image-root", root) == (0, [])
    with pytest.raises(UserError, match="no comparison in 1 rows"):
        run(root, [row("0.png", "0.png")])
    with pytest.raises(UserError, match=r"no comparison in 1 rows\n.*json:1: bad_row: no adapter"):
        run(root, [{"x": 1}])
    # A row of a wrong form costs only itself.
    code, found = run(root, [row("0.png", "1.png"), {"x": 1}, [7]])
    assert (code, kinds(found)) == (1, [("bad_row", 2), ("bad_row", 3)])
    with pytest.raises(UserError, match="no task is called"):
        run(root, rows, "--task", "images")


def test_what_is_found_is_told_with_its_place(root: Path, capsys: Any) -> None:
    run(root, [row("0.png", "1.png"), row("0.png", "1.png", 2), row("2.png", "gone.png")])
    told = capsys.readouterr()
    assert "1  comparisons that come again with the other label (!)" in told.out
    assert "1  pictures that cannot be used (!)" in told.out
    assert "data.json:3: bad_medium: missing: gone.png: no such file" in told.err
