"""`check_rows.py --exclude`: rows for a training are proved to be free of held-out comparisons."""

import subprocess
import sys

import pytest
from cot_reward.errors import UserError
from cot_reward.records import conversation
from cot_reward.rows import checking
from helpers.environments import REPO
from helpers.merging import published
from helpers.pictures import picture
from helpers.rows import judged_row, raw_row, write_lines

CAT = ("a.png", "b.png")


@pytest.fixture
def root(tmp_path):
    for name in (*CAT, "c.png", "x/a.png", "x/b.png"):
        picture(tmp_path / "media" / name)
    return tmp_path / "media"


def check(root, rows, held_out, *image_roots):
    """Exit code of a check of these rows against these held-out rows."""
    files = [write_lines(root.parent / "rows.jsonl", rows)]
    exclude = write_lines(root.parent / "held_out.jsonl", held_out)
    return checking.report_problems(files, root, 2, 10, [str(exclude)], image_roots)


FORMS = {
    "judged": judged_row("text", caption="a cat", images=CAT),
    "published SFT": published("text", "conversations", "a cat", CAT[::-1]),
    "pair": {
        "problem": "<image><image>Judge. Text Caption: [a cat]", "images": list(CAT),
        "chosen": "a", "rejected": "b",
    },
    "our pair": {
        "problem": "<image><image>Which?", "images": list(CAT), "videos": [], "chosen": "a",
        "rejected": "b", "id": judged_row("x", caption="a cat")["id"], "order": "given",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_row_about_a_held_out_comparison_is_named(root, capsys, form):
    free = judged_row("text", caption="a dog", images=("b.png", "c.png"))
    held_out = [raw_row("a cat", CAT), raw_row("a fox", CAT)]
    assert check(root, [free, FORMS[form], FORMS[form]], held_out) == 1
    told = capsys.readouterr().out
    assert "2  held_out" in told
    assert "rows.jsonl:2: held_out: it is about the held-out comparison" in told
    assert "held_out.jsonl (2 rows): 1 of its comparisons are among the rows" in told
    assert check(root, [free], held_out) == 0
    assert "0 of its comparisons are among the rows\n1 rows, 2 images, 0 videos: clean" in (
        capsys.readouterr().out
    )


def test_paths_of_held_out_rows_start_at_their_image_root(root, capsys):
    rows = [judged_row("text", caption="a cat", images=("x/a.png", "x/b.png"))]
    held_out = [raw_row("a cat", CAT)]
    assert check(root, rows, held_out) == 0
    assert check(root, rows, held_out, root / "x") == 1
    with pytest.raises(UserError, match="not inside --media-root"):
        check(root, rows, held_out, root.parent)


def test_nothing_is_proved_where_the_held_out_images_are_not_there(root, capsys):
    """Its paths are relative to something else: its comparisons could not be found."""
    rows = [judged_row("text", caption="a cat", images=("x/a.png", "x/b.png"))]
    held_out = [raw_row("a cat", ["deep/a.png", "deep/b.png"])]
    assert check(root, rows, held_out) == 1
    assert "its images are not where its paths lead" in capsys.readouterr().out
    # A key needs no path.
    assert check(root, rows, [{"id": "0" * 64}]) == 0


def test_pictures_under_another_caption_and_empty_files_are_warned_of(root, capsys):
    rows = [judged_row("text", caption="a cat", images=CAT)]
    assert check(root, rows, [raw_row("A cat", CAT)]) == 0
    assert "1 comparisons of the rows show the same pictures" in capsys.readouterr().err
    assert check(root, rows, []) == 0
    assert "it is empty; see that this is right" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "held_out", "free"),
    [
        # No row there is about these pictures.
        (["b.png", "c.png"], [raw_row("a cat", CAT)], True),
        (["a.png"], [raw_row("a cat", CAT)], True),
        ([], [raw_row("a cat", CAT)], True),
        # The caption could be any.
        (["b.png", "a.png"], [raw_row("a cat", CAT)], False),
        (["b.png", "c.png"], [raw_row("a cat", CAT), {"id": "0" * 64}], False),
    ],
)
def test_a_row_without_a_key_is_free_when_its_pictures_are(root, capsys, images, held_out, free):
    """Cold-start rows of other projects: their prompts need not show a caption."""
    prompt = "<image>" * len(images) + "What do you see?"
    row = {"conversations": conversation(prompt, "This."), "images": images}
    assert check(root, [row], held_out) == (0 if free else 1)
    told = "whether it is about a held-out comparison cannot be told: no key as 'id'"
    assert (told in capsys.readouterr().out) == (not free)


def test_the_script_takes_files_and_roots(root):
    rows = write_lines(root.parent / "rows.jsonl", [FORMS["judged"]])
    write_lines(root.parent / "held_1.jsonl", [raw_row("a dog", CAT)])
    write_lines(root.parent / "held_2.jsonl", [raw_row("a cat", CAT)])
    command = [sys.executable, "scripts/check_rows.py", rows, "--media-root", root]

    def run(*flags):
        return subprocess.run(
            [*map(str, [*command, *flags])], cwd=REPO, capture_output=True, text=True, check=False
        )

    done = run("--exclude", root.parent / "held_*.jsonl")
    assert done.returncode == 1
    assert f"{rows}:1: held_out: " in done.stdout
    assert run("--exclude", root.parent / "held_1.jsonl").returncode == 0
    assert run("--exclude", root.parent / "gone*.jsonl").returncode == 2
    assert run("--exclude", rows, "--exclude-image-root", root, root).returncode == 2
