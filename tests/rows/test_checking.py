"""`scripts/check_rows.py`: what it finds, where it says that it is, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.media.images import inspect_image
from cot_reward.media.paths import LFS_POINTER
from cot_reward.records import conversation
from cot_reward.rows import checking
from helpers.environments import REPO
from helpers.rows import write_rows
from PIL import Image


def sft(images: list[str], **extra: Any) -> dict[str, Any]:
    return {
        "conversations": conversation("<image>" * len(images) + "Which?", "<answer>x</answer>"),
        "images": images,
        **extra,
    }


def dpo(images: list[str], **extra: Any) -> dict[str, Any]:
    problem = "<image>" * len(images) + "Which?"
    return {"problem": problem, "chosen": "a", "rejected": "b", "images": images, **extra}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    root.mkdir()
    for name in ("a.png", "b.png", "c.jpg"):
        Image.new("RGB", (60, 60), "red").save(root / name)
    (root / "clip.mp4").write_bytes(b"frames")
    return root


def found(path: Path, root: Path) -> list[tuple[str, str]]:
    findings = checking.check_files([path], root, workers=2)
    return [(problem.where, problem.reason) for problem in findings.problems]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_clean(tmp_path: Path, root: Path, name: str) -> None:
    video = sft([], videos=["clip.mp4"]) | {"conversations": conversation("<video>W", "x")}
    rows = [sft(["a.png", "b.png"]), sft([]), dpo(["b.png", "./a.png"]), video]
    findings = checking.check_files([write_rows(tmp_path / name, rows)], root, workers=2)
    assert findings.problems == []
    assert (findings.rows, findings.images, findings.videos) == (4, 2, 1)


def break_media(root: Path) -> None:
    (root / "zero.png").write_bytes(b"")
    (root / "zero.mp4").write_bytes(b"")
    (root / "text.png").write_text("hello")
    whole = (root / "c.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "pointer.png").write_bytes(LFS_POINTER + b"v1")
    (root / "pointer.mp4").write_bytes(LFS_POINTER + b"v1")
    (root / "out.png").symlink_to(root.parent / "outside.png")
    Image.new("RGB", (60, 60)).save(root.parent / "outside.png")
    Image.new("1", (1_000_000, 1)).save(root / "thin.png")


VIDEO_ROW = sft([], videos=["zero.mp4"]) | {"conversations": conversation("<video>W", "x")}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sft(["gone.png"]), "missing"),
        (sft(["a.png", "../outside.png"]), "escapes"),
        (sft(["out.png"]), "escapes"),
        (sft(["/etc/hostname"]), "escapes"),
        (dpo(["zero.png"]), "empty"),
        (sft(["text.png"]), "not_an_image"),
        (sft(["pointer.png"]), "lfs_pointer"),
        (VIDEO_ROW | {"videos": ["pointer.mp4"]}, "lfs_pointer"),
        (sft(["https://host/a.png"]), "address"),
        (dpo(["data:image/png;base64,AAAA"]), "address"),
        (sft(["cut.jpg"]), "corrupt"),
        (sft(["thin.png"]), "too_large"),
        (VIDEO_ROW, "empty"),
        (
            VIDEO_ROW | {"videos": ["gone.mp4"], "conversations": conversation("<video>", "x")},
            "missing",
        ),
        (sft(["a.png"]) | {"images": []}, "placeholders"),
        (sft([]) | {"images": ["a.png"]}, "placeholders"),
        (dpo(["a.png"]) | {"images": ["a.png", "b.png"]}, "placeholders"),
        (dpo(["a.png"], rejected="<image>"), "placeholders"),
        (sft([]) | {"conversations": conversation("<audio>", "x")}, "placeholders"),
        (sft([]) | {"conversations": conversation("p", " ")}, "fields"),
        (sft([]) | {"conversations": conversation("p", "x")[:1]}, "fields"),
        (sft([]) | {"conversations": conversation("p", "x")[::-1]}, "fields"),
        (sft([]) | {"conversations": None}, "fields"),
        (sft(["a.png"]) | {"images": "a.png"}, "fields"),
        (sft(["a.png"]) | {"images": None}, "fields"),
        (sft(["a.png"]) | {"images": [["a.png"]]}, "fields"),
        (sft([], label="1"), "fields"),
        (sft([], sample=True), "fields"),
        (sft([], id=None), "fields"),
        (dpo([], chosen=["a"]), "fields"),
        (dpo([], order=1), "fields"),
        ({"problem": "p", "chosen": "x"}, "fields"),
        ({}, "fields"),
        ("text", "fields"),
        (None, "fields"),
    ],
)
def test_one_bad_row(tmp_path: Path, root: Path, row: Any, reason: str) -> None:
    break_media(root)
    rows = [sft(["a.png"]), sft(["b.png"]), row]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert found(path, root) == [(f"{path}:3", reason)]
    path = write_rows(tmp_path / "rows.json", rows)
    assert found(path, root) == [(f"{path}: row 3", reason)]


@pytest.mark.parametrize(
    "bad", ['{"conversations": [', "nonsense", '{"a": 1} {"b": 2}', "[" * 9999]
)
def test_a_malformed_line_has_its_number(tmp_path: Path, root: Path, bad: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(sft(["a.png"]))
    path.write_text(f"{good}\n\n{bad}\n{good}\n")
    assert found(path, root) == [(f"{path}:3", "malformed")]


def test_a_malformed_list_has_its_line(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[\n{json.dumps(sft(["a.png"]))},\n{{"a": }}\n]')
    assert found(path, root) == [(f"{path}:3", "malformed")]


def test_bytes_that_are_not_utf8(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(sft(["a.png"])).encode() + b'\n{"a": "\xff"}\n')
    assert found(path, root) == [(f"{path}:2", "malformed")]


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_a_problem(tmp_path: Path, root: Path, content: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert found(path, root) == [(str(path), "empty_file")]


def test_each_image_is_decoded_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    inspect = inspect_image

    def counted(path: Path) -> tuple[str, tuple[int, int]]:
        decoded.append(path.name)
        return inspect(path)

    monkeypatch.setattr(checking, "inspect_image", counted)
    break_media(root)
    rows = [sft(["a.png", "./a.png", "cut.jpg"]), dpo(["cut.jpg", "a.png"])]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert found(path, root) == [(f"{path}:1", "corrupt"), (f"{path}:2", "corrupt")]
    assert sorted(decoded) == ["a.png", "cut.jpg"]


# --- the script -----------------------------------------------------------------------------------
def script(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(REPO / "scripts/check_rows.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)


def test_script_says_clean(tmp_path: Path, root: Path) -> None:
    files = [
        write_rows(tmp_path / "a.json", [sft(["a.png"])]),
        write_rows(tmp_path / "b.jsonl", [dpo(["a.png"])]),
    ]
    done = script(*files, "--image-folder", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 rows, 1 images, 0 videos: clean\n"


def test_script_counts_and_shows_the_first_ten(tmp_path: Path, root: Path) -> None:
    rows = [sft(["a.png"])] + [sft([f"{index}.png"]) for index in range(20)] + [sft([], id=3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    done = script(path, "--media-root", root)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith("21 problems")
    assert [line.split() for line in lines[1:3]] == [["20", "missing"], ["1", "fields"]]
    assert len(lines) == 4 + 10
    assert lines[4].startswith(f"  {path}:2: missing: 0.png")


def test_one_cause_is_told_once_with_its_number(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (root / f"{number}.png").write_bytes(LFS_POINTER + b"v1")
    names = [f"https://host/{n}.png" for n in range(20)] + [f"{root}/a.png"] * 20
    names += [f"{n}.png" for n in range(3)] + ["gone.png", "away.png"]
    path = write_rows(tmp_path / "rows.jsonl", [sft([name]) for name in names])
    assert checking.report_problems([path], root, workers=1, show=4) == 1
    summary, *lines = capsys.readouterr().out.splitlines()
    assert summary.endswith("45 problems")
    counts = {"address": "20", "escapes": "20", "lfs_pointer": "3", "missing": "2"}
    assert {line.split()[1]: line.split()[0] for line in lines[:4]} == counts
    assert lines[4] == "The first 4:"
    places = {1: ("address", 19), 21: ("escapes", 19), 41: ("lfs_pointer", 2), 44: ("missing", 0)}
    for line, (number, (reason, more)) in zip(lines[5:], places.items(), strict=True):
        assert line.startswith(f"  {path}:{number}: {reason}: ")
        assert line.endswith(f"(and {more} more like it in this file)") == bool(more)


def test_every_problem_of_a_medium_names_its_file(tmp_path: Path, root: Path) -> None:
    break_media(root)
    names = ["gone.png", "out.png", "zero.png", "text.png", "cut.jpg", "thin.png"]
    path = write_rows(tmp_path / "rows.jsonl", [sft([name]) for name in names])
    findings = checking.check_files([path], root, workers=2)
    assert len(findings.problems) == len(names)
    for name, problem in zip(names, findings.problems, strict=True):
        assert name in problem.message


def test_shipped_samples_are_clean() -> None:
    sample = REPO / "dataset/sample"
    names = ("sft.json", "correct.jsonl", "incorrect.jsonl", "dpo.jsonl")
    done = script(*(sample / name for name in names), "--media-root", REPO / "dataset")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("8 rows")


def test_users_mistakes(tmp_path: Path, root: Path) -> None:
    path = write_rows(tmp_path / "rows.json", [sft([])])
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "gone.json"], "no such file"),
        ([path, "--media-root", tmp_path / "gone"], "--media-root"),
        ([path, "--media-rot", root], "Did you mean '--media-root'?"),
        ([path, "--media-root", root, "--workers", 0], "--workers"),
        ([], "FILE"),
    ]
    for arguments, message in cases:
        done = script(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_help_is_there_and_nothing_imports_torch() -> None:
    assert "videos are not decoded" in script("--help").stdout
    code = "import cot_reward.rows.checking, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "scripts", check=True)


def test_a_file_that_cannot_be_read_is_the_users_error(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [sft(["a.png"])])

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be read: .*Permission denied"):
        checking.check_files([path], root, workers=1)


def test_the_files_may_stand_in_yaml(tmp_path: Path, root: Path) -> None:
    path = write_rows(tmp_path / "rows.json", [sft(["a.png"])])
    config = tmp_path / "check.yaml"
    config.write_text(f"files: [{path}]\nmedia_root: {root}\n")
    done = script("--config", config)
    assert (done.returncode, done.stderr) == (0, "")
