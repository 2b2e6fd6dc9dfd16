"""Held-out files: what they leave out of the pairs, and what is told when that is nothing."""

import pytest
from helpers.merging import RIGHT, WRONG, run
from helpers.pictures import picture
from helpers.rows import judged_row, raw_row, write_lines

CAT = ("x/a.png", "x/b.png")


def rows(*comparisons):
    """A right and a wrong row about each comparison (caption, images)."""
    return tuple(
        [judged_row(text, caption=caption, images=images) for caption, images in comparisons]
        for text in (RIGHT, WRONG)
    )


def test_each_held_out_file_has_its_own_image_root(tmp_path, capsys):
    """Two data sets with the same file names below folders of their own."""
    for folder in "xy":
        for name in "ab":
            picture(tmp_path / folder / f"{name}.png")
    files = [
        write_lines(tmp_path / f"{name}.jsonl", [raw_row(caption, ["a.png", "b.png"])])
        for name, caption in (("cats", "a cat"), ("dogs", "a dog"))
    ]
    made = rows(("a cat", CAT), ("a dog", ("y/a.png", "y/b.png")), ("a fox", ("x/a.png", "z.png")))
    flags = ["--exclude", *files, "--no-balance-positions", "--exclude-image-root"]
    pairs, summary = run(tmp_path, *made, *flags, tmp_path / "x", tmp_path / "y")
    assert [pair["id"] for pair in pairs] == [made[0][2]["id"]]
    assert summary["excluded_comparisons"] == {str(file): 1 for file in files}
    assert "--exclude" not in capsys.readouterr().err
    pairs, summary = run(tmp_path, *made, *flags, tmp_path / "x")
    assert summary["excluded_comparisons"] == {str(files[0]): 1, str(files[1]): 0}
    assert f"--exclude {files[1]}: none of its comparisons is among" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held_out", "met", "alike"),
    [
        (raw_row("a cat", CAT), 1, 0),
        (raw_row("a  cat", CAT), 0, 1),
        (raw_row("A cat", CAT[::-1]), 0, 1),
        (judged_row(RIGHT, caption="A cat", images=CAT), 0, 1),
        ({"text": "A cat", "candidates": CAT, "task": "image_generation", "label": 1}, 0, 1),
        ({"text": "A cat", "candidates": CAT, "context": ["x/a.png"], "label": 1}, 0, 0),
        (raw_row("a cat", ("x/a.png", "x/c.png")), 0, 0),
        # Relative to the image root, and to the media root.
        (raw_row("A cat", ("a.png", "b.png")), 0, 1),
    ],
)
def test_pictures_under_another_caption_are_counted_and_told_of(
    tmp_path, capsys, held_out, met, alike
):
    path = write_lines(tmp_path / "held_out.jsonl", [held_out, held_out])
    made = rows(("a cat", CAT), ("a dog", ("y/a.png", "y/b.png")))
    flags = ["--exclude", path, "--exclude-image-root", tmp_path / "x"]
    _, summary = run(tmp_path, *made, *flags)
    assert summary["excluded_comparisons"] == {str(path): met}
    assert summary["same_pictures_as_excluded"] == {str(path): alike}
    told = capsys.readouterr().err
    assert ("1 comparisons of the responses show the same pictures" in told) == bool(alike)
    assert ("none of its comparisons is among the responses" in told) == (not met)
