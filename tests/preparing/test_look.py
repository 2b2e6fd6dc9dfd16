"""scripts/prepare_data.py look: what it says is enough to write the map."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cot_reward.errors import UserError
from cot_reward.preparing.look import look
from cot_reward.preparing.settings import LookSettings
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row, write_rows
from pyarrow import parquet


def told(capsys: Any, *files: Path, rows: int = 1000) -> str:
    assert look(LookSettings(list(files), rows)) == 0
    return str(capsys.readouterr().out)


def test_columns_types_values_and_gaps(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"cap": f"caption {n}", "left": f"{n}.png", "right": f"{n}.mp4", "win": "AB"[n % 2],
         "meta": {"score": n, "tags": ["x", "y"]}}
        for n in range(10)
    ]  # fmt: skip
    del rows[3]["win"]
    text = told(capsys, write_rows(tmp_path / "a.json", rows))
    assert "10 rows read" in text
    assert re.search(r"cap +text: caption 0", text)
    assert re.search(r"left +path of an image: 0.png", text)
    assert re.search(r"right +path of a video: 0.mp4", text)
    assert re.search(r"win +text \(missing in 1\): A \(5\), B \(4\)", text)
    assert re.search(r"meta.score +int: ", text)
    assert re.search(r"meta.tags.0 +text", text)
    assert "no known form" in text
    assert "--labels 'A=?' 'B=?'" in text


def test_the_suggested_command_converts_a_set_that_nobody_knows(
    tmp_path: Path, capsys: Any
) -> None:
    """As a new user: look, complete the suggestion, run it."""
    for number in range(6):
        picture(tmp_path / f"dataset/mine/{number}.png", (number, 9, 9))
    rows = [
        {"user_prompt": f"cat {n}", "img_left": f"mine/{n}.png", "img_right": f"mine/{n + 1}.png",
         "human_pref": ("left", "right", "tie")[n % 3]}
        for n in range(5)
    ]  # fmt: skip
    path = write_rows(tmp_path / "dataset/mine/data.jsonl", rows)
    text = told(capsys, path)
    (command,) = re.findall(r"^  (python .*--map .*)$", text, re.MULTILINE)
    (labels,) = re.findall(r"^  (--labels .*?)   ", text, re.MULTILINE)
    for value, meaning in {"left": "1", "right": "2", "tie": "tie"}.items():
        labels = labels.replace(f"{value}=?", f"{value}={meaning}")
    command = command.replace("TASK", "image_generation")
    words = shlex.split(f"{command} {labels}")[1:]
    words[0] = str(REPO / words[0])
    flags = ["--media-root", str(tmp_path / "dataset"), "--out", str(tmp_path / "dataset/mine/x")]
    done = subprocess.run(
        [sys.executable, *words, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4 comparisons of 5 rows, the first candidate is better in 50.0%; 1 ties" in done.stdout


def test_known_forms_and_shipped_maps_are_named(tmp_path: Path, capsys: Any) -> None:
    known = write_rows(tmp_path / "a.json", [raw_row("a", ["a.png", "b.png"])])
    assert "form: upstream, which needs no map" in told(capsys, known)
    rows = [{"caption": "a", "jpg_0": b"x", "jpg_1": b"y", "label_0": 0.5}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    text = told(capsys, tmp_path / "a.parquet")
    assert "fits configs/data/pickapic.yaml" in text
    assert re.search(r"jpg_0 +medium in the row \(1 bytes\)", text)


def test_a_label_that_is_there_is_not_passed_over(tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "a", "path1": "a.png", "path2": "b.png", "label": 1 + n % 2} for n in (0, 1)]
    text = told(capsys, write_rows(tmp_path / "a.json", rows))
    assert "hpdv3.yaml if the first candidate is the better one in every row" in text
    assert "--map text=prompt first=path1 second=path2 label=label" in text


def test_rows_without_values_are_no_crash(tmp_path: Path, capsys: Any) -> None:
    assert "1 rows read" in told(capsys, write_rows(tmp_path / "a.json", [{"a": None}]))


def test_texts_of_a_file_do_not_reach_the_terminal_as_they_are(tmp_path: Path, capsys: Any) -> None:
    rows = [{"a\x1b[31m": "red \x1b[31m\x07 text", "pic": "data:image/png;base64," + "A" * 5000}]
    text = told(capsys, write_rows(tmp_path / "a.json", rows))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text) < 3000


def test_broken_rows_are_counted(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1]\n{"a": 2}\n')
    assert "2 rows read, 2 that cannot be read" in told(capsys, path)
    path.write_text("[1]\n{\n")
    with pytest.raises(UserError, match="none of its first 2 rows can be read"):
        told(capsys, path)


def test_commands_are_named(tmp_path: Path) -> None:
    def script(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "scripts/prepare_data.py", *words], cwd=REPO, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    assert "look FILE" in script().stdout
    assert "--map TEXT ..." in script("convert", "--help").stdout
    failed = script("covnert", "x")
    assert (failed.returncode, failed.stderr) == (
        2, "error: no command is called 'covnert'. Did you mean 'convert'?\n",
    )  # fmt: skip
