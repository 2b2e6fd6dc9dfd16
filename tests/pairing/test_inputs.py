"""Which files a merge reads, and which it refuses."""

from pathlib import Path

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.pairing.inputs import HeldOutFile, find_inputs
from cot_reward.pairing.output import OUTPUT_FILES
from cot_reward.pairing.settings import MergeSettings
from helpers.merging import RIGHT, WRONG, run
from helpers.rows import judged_row, write_lines


def found(*argv: object):
    return find_inputs(settings.parse(MergeSettings, "", argv=list(map(str, argv))))


def through_nothing(folder: Path, output: Path) -> Path:
    return output


def through_a_link_to_the_file(folder: Path, output: Path) -> Path:
    (folder / "link.jsonl").symlink_to(output)
    return folder / "link.jsonl"


def through_a_link_to_the_folder(folder: Path, output: Path) -> Path:
    (folder / "linked").symlink_to(output.parent)
    return folder / "linked" / output.name


def through_dots(folder: Path, output: Path) -> Path:
    return folder / "out/../out" / output.relative_to(folder / "out")


@pytest.mark.parametrize("name", [*OUTPUT_FILES, ".merging/rest.jsonl"])
@pytest.mark.parametrize(
    "way",
    [through_nothing, through_a_link_to_the_file, through_a_link_to_the_folder, through_dots],
)
@pytest.mark.parametrize("flag", ["--correct", "--incorrect", "--exclude"])
def test_an_input_that_the_merge_would_replace_is_refused(tmp_path, flag, way, name):
    output = tmp_path / "out" / name
    output.parent.mkdir(parents=True)
    write_lines(output, [judged_row(RIGHT)])
    before = output.read_bytes()
    path = way(tmp_path, output)
    with pytest.raises(UserError, match=f"{flag} {path}: a merge into --out .* this file"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], flag, path)
    assert output.read_bytes() == before


def test_an_output_that_is_a_link_to_an_input_is_refused(tmp_path):
    write_lines(tmp_path / "held_out.jsonl", [judged_row(RIGHT, caption="a dog")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/eval.jsonl").symlink_to(tmp_path / "held_out.jsonl")
    flags = ["--exclude", tmp_path / "out/*.jsonl"]
    with pytest.raises(UserError, match=r"--exclude .*eval\.jsonl: a merge into"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], *flags)


def test_other_files_in_the_folder_are_no_outputs(tmp_path):
    (tmp_path / "out").mkdir()
    path = write_lines(tmp_path / "out/wrong.jsonl", [judged_row(WRONG)])
    assert len(run(tmp_path, [judged_row(RIGHT)], [], "--incorrect", path)[0]) == 1
    assert path.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_on_both_sides_is_refused(tmp_path, linked):
    path = other = write_lines(tmp_path / "all.jsonl", [judged_row(RIGHT), judged_row(WRONG)])
    if linked:
        other = tmp_path / "other.jsonl"
        other.symlink_to(path)
    with pytest.raises(UserError, match=r"all\.jsonl is a file of both --correct and --incorrect"):
        run(tmp_path, [], [], "--correct", path, "--incorrect", other)


@pytest.mark.parametrize(
    ("roots", "prefixes"),
    [
        ([], ["x", "x", "x"]),
        (["--exclude-image-root", "{}/y"], ["y", "y", "y"]),
        (["--exclude-image-root", "{}/y", "{}"], ["y", "y", ""]),
    ],
)
def test_held_out_files_have_one_image_root_or_one_each(tmp_path, roots, prefixes):
    for name in ("held_1.json", "held_2.json", "other.json"):
        (tmp_path / name).touch()
    inputs = found(
        "--correct", "c", "--incorrect", "i", "--out", tmp_path / "out", "--media-root", tmp_path,
        "--image-root", tmp_path / "x", "--exclude", tmp_path / "held_*.json",
        tmp_path / "other.json", *(root.format(tmp_path) for root in roots),
    )  # fmt: skip
    names = ("held_1.json", "held_2.json", "other.json")
    assert inputs.held_out == [
        HeldOutFile(tmp_path / name, prefix) for name, prefix in zip(names, prefixes, strict=True)
    ]
    assert inputs.prefix == "x"


def test_image_roots_of_held_out_files_must_fit_them(tmp_path):
    argv = ["--correct", "c", "--incorrect", "i", "--out", tmp_path, "--exclude", "a", "b", "c"]
    with pytest.raises(UserError, match="names 2 folders for 3 files or globs of --exclude"):
        found(*argv, "--exclude-image-root", "x", "y")
    with pytest.raises(UserError, match="not inside --media-root"):
        found(*argv, "--exclude-image-root", tmp_path)
