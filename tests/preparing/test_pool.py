"""scripts/prepare_data.py pool: disjoint pools, their sizes and sources."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.preparing.comparisons import words_of
from cot_reward.preparing.pool import pool
from cot_reward.preparing.settings import PoolSettings
from helpers.rows import read_lines, write_lines


def row(text: str, first: str, second: str, label: int = 1) -> dict[str, Any]:
    return {"task": "image_generation", "text": text, "candidates": [first, second], "label": label}


def rows(count: int, name: str) -> list[dict[str, Any]]:
    """Three comparisons of each caption; neighbours share a picture."""
    return [
        row(f"{name} {n // 3}", f"{name}{n // 3}-{n % 3}.png", f"{name}{n // 3}-{n % 3 + 1}.png")
        for n in range(count)
    ]


def run(folder: Path, files: dict[str, list[Any]], *flags: object, out: str = "out") -> int:
    paths = [write_lines(folder / f"{name}.jsonl", lines) for name, lines in files.items()]
    argv = [*paths, "--media-root", folder, "--out", folder / out, *flags]
    return pool(settings.parse(PoolSettings, "", argv=list(map(str, argv))))


def test_pools_share_no_comparison_caption_or_picture(tmp_path: Path) -> None:
    data = [*rows(300, "a"), row("A 7!", "x.png", "y.png"), row("new", "a5-0.png", "z.png")]
    sizes = {"cold": 60, "sampling": 120, "heldout": 45}
    flags = [f"{name}={size}" for name, size in sizes.items()]
    assert run(tmp_path, {"a": data}, "--pools", *flags) == 0
    drawn = {name: read_lines(tmp_path / f"out/{name}.jsonl") for name in sizes}
    assert {name: len(found) for name, found in drawn.items()} == sizes
    owners: dict[str, set[str]] = {}
    for name, found in drawn.items():
        for entry in found:
            for thing in (words_of(entry["text"]), *entry["candidates"]):
                owners.setdefault(thing, set()).add(name)
    assert {len(names) for names in owners.values()} == {1}


def test_a_draw_depends_on_its_seed_alone(tmp_path: Path) -> None:
    flags = ["--pools", "one=30", "two=30"]
    assert run(tmp_path, {"a": rows(300, "a")}, *flags) == 0
    assert run(tmp_path, {"a": rows(300, "a")}, *flags, out="again") == 0
    assert run(tmp_path, {"a": rows(300, "a")}, *flags, "--seed", 1, out="other") == 0
    first, again, other = (
        (tmp_path / f"{folder}/one.jsonl").read_text() for folder in ("out", "again", "other")
    )
    assert first == again != other


def test_every_pool_has_the_shares_of_the_weights(tmp_path: Path) -> None:
    files = {"a": rows(300, "a"), "b": rows(300, "b")}
    assert run(tmp_path, files, "--pools", "one=60", "two=40", "--weights", 3, 1) == 0
    for name, wanted in {"one": {"a": 45, "b": 15}, "two": {"a": 30, "b": 10}}.items():
        found = read_lines(tmp_path / f"out/{name}.jsonl")
        assert Counter(entry["text"][0] for entry in found) == wanted


def test_a_pool_that_is_not_full_is_an_error_that_says_so(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, {"a": rows(30, "a")}, "--pools", "one=20", "two=20") == 3
    told = capsys.readouterr()
    assert "short" in told.out
    assert "a pool is not full" in told.err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert sum(summary["pools"].values()) == 30


def test_questions_that_are_alike_are_no_family(tmp_path: Path) -> None:
    data = [
        {"task": "image_understanding", "text": "What is this?", "candidates": ["a", "b"],
         "context": [f"{n // 2}.png"], "label": 1}
        for n in range(40)
    ]  # fmt: skip
    for n, entry in enumerate(data):
        entry["candidates"] = ["a", f"b{n}"]
    assert run(tmp_path, {"a": data}, "--pools", "one=10", "two=10") == 0
    shown = [
        {entry["context"][0] for entry in read_lines(tmp_path / f"out/{name}.jsonl")}
        for name in ("one", "two")
    ]
    assert not shown[0] & shown[1]


def test_repeated_and_bad_rows_are_counted(tmp_path: Path, capsys: Any) -> None:
    data = [*rows(12, "a"), *rows(3, "a"), row("x", "a.png", "a.png")]
    assert run(tmp_path, {"a": data}, "--pools", "one=12") == 0
    told = capsys.readouterr()
    assert "16 rows, 12 comparisons in 4 families; the largest has 3; 1 bad rows" in told.out
    assert "3 that came again" in told.out
    assert "a.jsonl:16: both candidates are the same" in told.err


def test_comparisons_with_both_labels_are_left_out(tmp_path: Path, capsys: Any) -> None:
    data = [row("x", "a.png", "b.png", 1), row("x", "b.png", "a.png", 1), *rows(6, "a")]
    assert run(tmp_path, {"a": data}, "--pools", "one=6") == 0
    assert "x" not in {entry["text"] for entry in read_lines(tmp_path / "out/one.jsonl")}
    assert "1 comparisons that come with both labels are left out" in capsys.readouterr().err


def test_a_file_of_no_weight_gives_nothing(tmp_path: Path) -> None:
    files = {name: rows(30, name) for name in "abc"}
    assert run(tmp_path, files, "--pools", "one=5", "--weights", 0, 1, 1) == 0
    found = Counter(entry["text"][0] for entry in read_lines(tmp_path / "out/one.jsonl"))
    assert found["a"] == 0
    assert found.total() == 5


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = write_lines(tmp_path / "own/one.jsonl", rows(9, "a"))
    argv = [path, "--media-root", tmp_path, "--out", tmp_path / "own", "--pools", "one=2"]
    with pytest.raises(UserError, match="is there already"):
        pool(settings.parse(PoolSettings, "", argv=list(map(str, argv))))
    assert len(read_lines(path)) == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pools", "one"], "must be NAME=NUMBER"),
        (["--pools", "one=0"], "must be NAME=NUMBER"),
        (["--pools", "../one=3"], "must be NAME=NUMBER"),
        (["--pools", "one=3", "one=4"], "names a pool twice"),
        (["--pools", "one=3", "--weights", "1", "2"], "2 numbers for 1 files"),
        (["--pools", "one=3", "--weights", "0"], "one of them more than 0"),
        ([], "--pools is needed"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, {"a": rows(3, "a")}, *flags)


def test_pools_are_not_replaced(tmp_path: Path) -> None:
    assert run(tmp_path, {"a": rows(30, "a")}, "--pools", "one=3") == 0
    with pytest.raises(UserError, match="holds pools already"):
        run(tmp_path, {"a": rows(30, "a")}, "--pools", "one=3")
