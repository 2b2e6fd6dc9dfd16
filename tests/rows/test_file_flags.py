"""Flags that name files of rows: FILE@ROOT and --image-root, patterns of held-out files."""

from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.rows.file_flags import (
    DataFile,
    HeldOutFile,
    check_held_out_roots,
    data_files,
    held_out_files,
)
from cot_reward.rows.reading import STDIN


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files and folders with an "@" in some of their names; names are relative to it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json", "c@d.json", "e.json@x"):
        Path(name).touch()
    for name in ("x", "y", "v@1"):
        Path(name).mkdir()
    return tmp_path


def roots(names, image_roots=()):
    found = data_files(list(map(Path, names)), list(map(Path, image_roots)))
    return [(str(path), str(root) if root else None) for path, root in found]


@pytest.mark.parametrize(
    ("name", "file", "root"),
    [
        ("a.json", "a.json", None),
        ("a.json@x", "a.json", "x"),
        ("a.json@v@1", "a.json", "v@1"),
        ("c@d.json", "c@d.json", None),
        ("c@d.json@x", "c@d.json", "x"),
        ("c@d.json@v@1", "c@d.json", "v@1"),
        # The file of this name wins; for another meaning --image-root is there.
        ("e.json@x", "e.json@x", None),
        ("e.json@x@y", "e.json@x", "y"),
        ("-@x", "-", "x"),
        ("-", "-", None),
        # Reading tells of a file that is not there.
        ("@x", "@x", None),
    ],
)
def test_a_file_may_name_its_root(folder, name, file, root):
    assert roots([name]) == [(file, root)]
    assert data_files([STDIN], []) == [DataFile(STDIN, None)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.json@z", "--data a.json@z: z is no folder; FILE@ROOT names the folder"),
        ("a.json@b.json", "b.json is no folder"),
        ("a.json@", "no folder is named behind the @"),
        ("c@d.json@z", "of c@d.json start at"),
        ("gone.json@x", "--data gone.json@x: no such file, and no gone.json either (FILE@ROOT)"),
        ("gone@1.json@x", "no such file, and no gone@1.json either"),
    ],
)
def test_a_root_that_is_no_folder_is_named(folder, name, message):
    with pytest.raises(UserError) as error:
        roots([name])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("names", "image_roots", "expected"),
    [
        (["a.json", "b.json"], [], [None, None]),
        (["a.json", "b.json"], ["x"], ["x", "x"]),
        (["a.json", "b.json"], ["x", "y"], ["x", "y"]),
        (["a.json@x", "b.json"], [], ["x", None]),
        # One folder is for the files that name none.
        (["a.json@x", "b.json"], ["y"], ["x", "y"]),
        (["a.json@x", "b.json@y"], ["y"], ["x", "y"]),
        (["a.json@x"], ["x"], ["x"]),
        (["a.json@x"], ["./y/../x"], ["y/../x"]),
        (["a.json@x", "b.json"], ["x", "y"], ["x", "y"]),
    ],
)
def test_roots_of_files_and_image_roots_go_together(folder, names, image_roots, expected):
    assert [root for _, root in roots(names, image_roots)] == expected


@pytest.mark.parametrize(
    ("names", "image_roots", "message"),
    [
        (["a.json@x"], ["y"], "--data a.json@x: --image-root .* says y instead"),
        (["a.json", "b.json@x"], ["x", "y"], "--data b.json@x: .* says y instead"),
        (["a.json@x", "b.json@x"], ["y"], "--data a.json@x: .* says y instead"),
    ],
)
def test_a_root_that_is_contradicted_is_refused(folder, names, image_roots, message):
    with pytest.raises(UserError, match=message):
        roots(names, image_roots)


def test_held_out_files_are_listed_once_with_their_roots(folder):
    found = held_out_files(["?.json", "a.json"], [], folder / "x", folder)
    assert found == [HeldOutFile(Path("a.json"), "x"), HeldOutFile(Path("b.json"), "x")]
    found = held_out_files(["a.json", "b.json"], [folder, folder / "y"], folder / "x", folder)
    assert found == [HeldOutFile(Path("a.json"), ""), HeldOutFile(Path("b.json"), "y")]
    assert held_out_files([], [], folder, folder) == []
    with pytest.raises(UserError, match=r"--exclude \*\.parquet: no file matches"):
        held_out_files(["*.parquet"], [], folder, folder)
    with pytest.raises(UserError, match=r"--against \*\.parquet: no file matches"):
        held_out_files(["*.parquet"], [], folder, folder, "--against")
    with pytest.raises(UserError, match="not inside --media-root"):
        held_out_files(["a.json"], [folder], folder, folder / "x")


def test_roots_of_held_out_files_are_one_or_one_each():
    for exclude, image_roots in ((["a", "b"], 1), (["a", "b"], 2), (["a", "b"], 0), ([], 0)):
        check_held_out_roots(exclude, [Path("x")] * image_roots)
    for exclude, image_roots in ((["a", "b", "c"], 2), ([], 2)):
        with pytest.raises(ValueError, match=f"names {image_roots} folders for {len(exclude)}"):
            check_held_out_roots(exclude, [Path("x")] * image_roots)
