"""Rows of files of every form, with the media in them."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cot_reward.errors import UserError
from cot_reward.preparing.tables import KEY_COLUMN, read_table
from helpers.rows import write_lines
from pyarrow import parquet

ROWS = [{"prompt": 'a, "b"\nc', "path": "a.png"}, {"prompt": "é 猫", "path": "b.png"}]
PICTURE = bytes(range(256)) * 2


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in read_table(path)]


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def written(folder: Path, form: str) -> Path:
    path = folder / f"a.{form}"
    table = pa.Table.from_pylist(ROWS)
    if form == "json":
        path.write_text(json.dumps(ROWS))
    elif form == "jsonl":
        write_lines(path, ROWS)
    elif form == "parquet":
        parquet.write_table(table, path)
    elif form in ("arrow", "file.arrow"):
        writer = pa.ipc.new_stream if form == "arrow" else pa.ipc.new_file
        with writer(path, table.schema) as out:
            out.write_table(table)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, ROWS[0], delimiter="," if form == "csv" else "\t")
            lines.writeheader()
            lines.writerows(ROWS)
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet", "arrow", "file.arrow", "csv", "tsv"])
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form)
    first, second = read_table(path)
    assert second == (2, ROWS[1])
    if form == "tsv":
        # Line breaks in quotation marks are refused there.
        assert isinstance(first[1], ValueError)
    else:
        assert first == (1, ROWS[0])


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_pictures_in_rows_stay_bytes(tmp_path: Path, form: str) -> None:
    rows = [{"image": {"bytes": PICTURE, "path": "a.png"}, "raw": PICTURE, "n": 1}] * 70
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as out:
            out.write_table(table)
    assert rows_of(path) == rows


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_files_of_one_name_in_a_tar_file_are_a_row(tmp_path: Path, name: str, mode: str) -> None:
    one = {"x/1.0.jpg": PICTURE, "x/1.1.jpg": b"B", "x/1.json": b'{"caption": "a", "label": 1}'}
    two = {"x/2.txt": "é ".encode(), "x/2.jpg": b"C"}
    rows = rows_of(tar(tmp_path / name, one | two, mode))
    assert rows == [
        {KEY_COLUMN: "x/1", "0.jpg": PICTURE, "1.jpg": b"B", "json": {"caption": "a", "label": 1}},
        {KEY_COLUMN: "x/2", "txt": "é", "jpg": b"C"},
    ]


def test_nothing_of_a_tar_file_is_written_whatever_its_names(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"../../evil.txt": b"x", "/abs.txt": b"y"})
    assert [row[KEY_COLUMN] for row in rows_of(path)] == ["../../evil", "/abs"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]
    assert not (tmp_path.parent.parent / "evil.txt").exists()


def test_a_bad_row_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n\n4,5,6\n7,8\n")
    first, short, long, last = rows_of(tmp_path / "a.csv")
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "7", "b": "8"})
    assert [str(short), str(long)] == [
        "1 fields, and the first line has 2", "3 fields, and the first line has 2",
    ]  # fmt: skip
    path = tar(tmp_path / "a.tar", {"1.json": b"{", "1.txt": b"a", "2.txt": b"b"})
    broken, good = rows_of(path)
    assert isinstance(broken, ValueError)
    assert good["txt"] == "b"


@pytest.mark.parametrize("at", ["byte", "cut", "end"])
def test_rows_behind_a_damaged_header_are_missed(tmp_path: Path, at: str) -> None:
    path = tar(tmp_path / "a.tar", {f"{n}.txt": b"x" * 600 for n in range(6)})
    data = bytearray(path.read_bytes())
    # A header and two blocks of content for each file.
    if at == "byte":
        data[3 * 1536 + 20] ^= 1
    data = data[: {"byte": len(data), "cut": 3 * 1536 + 300, "end": 3 * 1536}[at]]
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read after row 2: damaged or cut short"):
        rows_of(path)


def test_a_quotation_mark_in_a_tsv_swallows_no_row_unseen(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(
        'text\tpath\n"Hello\ta.png\nmid\tb.png\nsize 5"\tc.png\nlast\td.png\n'
    )
    odd, last = rows_of(tmp_path / "a.tsv")
    assert "a field in quotation marks goes on" in str(odd)
    assert last == {"text": "last", "path": "d.png"}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar.gz", {"1.bin": PICTURE * 100, "2.bin": PICTURE}, "w:gz")
    broken = {
        "a.parquet": b"PAR1", "a.arrow": b"junk" * 10, "a.tar": b"junk" * 200,
        "cut.tar.gz": whole.read_bytes()[:150], "empty.csv": b"", "a.csv": b"a,b\n\xff\xfe,1\n",
        "twice.csv": b"a,a\n1,2\n", "a.json": b"[1",
    }  # fmt: skip
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            rows_of(tmp_path / name)
    with pytest.raises(UserError, match=r"gone.csv: no such file"):
        rows_of(tmp_path / "gone.csv")
