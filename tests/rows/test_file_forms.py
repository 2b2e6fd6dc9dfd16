"""Files that are not rows as they stand: each is named once, with what to do."""

import bz2
import gzip
import json
import lzma
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cot_reward.rows import reading
from cot_reward.rows.file_forms import HEAD_BYTES, form_fault
from cot_reward.rows.reading import BrokenFileError, read_rows

ROWS = [{"prompt": f"哪个 {n}?", "images": ["a.png", "b.png"]} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False)
INDENTED = "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n".encode()
BOM = "\ufeff"


def read(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path)]


def in_parts(path: Path) -> list[Any]:
    spans = reading.spans(path, 50)
    return [row for span in spans for _, row in reading.read_span(path, *span) if row is not None]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.JSONL"])
@pytest.mark.parametrize(
    "text",
    [
        BOM + LINES,
        BOM + BOM + LINES,
        "\n" + BOM + LINES,
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\n" + BOM),
    ],
)
def test_byte_order_marks_of_joined_files_are_no_text(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read(path) == in_parts(path) == ROWS


@pytest.mark.parametrize("text", [BOM + LIST, BOM + BOM + LIST, "\n" + BOM + LIST])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_byte_order_marks_before_a_list(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read(path) == ROWS
    assert reading.spans(path, 50) == []


FORMS = {
    "UTF-16 with a mark": (LINES.encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    "UTF-16": (LIST.encode("utf-16-le"), "UTF-16LE text", "iconv -f UTF-16LE -t"),
    "UTF-16, big end first": (LINES.encode("utf-16-be"), "UTF-16BE text", "iconv -f UTF-16BE -t"),
    "GBK": (LINES.encode("gbk"), "5 of its first lines", "iconv -f GB18030 -t UTF-8"),
    "Latin-1": (LINES.replace("哪个", "é, ").encode("latin-1"), "not UTF-8", "iconv -f LATIN1 -t"),
    "GBK list": (LIST.encode("gbk"), "not UTF-8 text (byte 0xc4)", "iconv -f GBK -t UTF-8"),
    "gzip": (gzip.compress(LINES.encode()), "compressed (gzip)", "gunzip --keep"),
    "bzip2": (bz2.compress(LINES.encode()), "compressed (bzip2)", "bunzip2 --keep"),
    "xz": (lzma.compress(LINES.encode()), "compressed (xz)", "unxz --keep"),
    "an object": (json.dumps({"n": 5, "data": ROWS}).encode(), 'its "data"', "jq '.[\"data\"]'"),
    "an object, indented": (json.dumps({"data": ROWS}, indent=1).encode(), 'in its "data"', "jq "),
    "a long object": (
        json.dumps({"rows": ROWS * HEAD_BYTES}, indent=1)[: 2 * HEAD_BYTES].encode(),
        'in its "rows"', "jq '.[\"rows\"]'",
    ),
    "rows on lines of their own in an object": (
        ('{"data": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}").encode(),
        'in its "data"', "jq '.[\"data\"]'",
    ),
    "indented rows": (INDENTED.encode(), "go over several lines", "jq -c ."),
    "indented rows behind a mark": ((BOM + INDENTED).encode(), "go over several lines", "jq -c ."),
    "Git LFS": (POINTER, "a Git LFS pointer", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html>", "a web page", "download the file itself"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(("content", "what", "command"), FORMS.values(), ids=FORMS)
def test_another_form_is_named_once(
    tmp_path: Path, suffix: str, content: bytes, what: str, command: str
) -> None:
    path = tmp_path / f"my rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert what in message
    assert command in message


@pytest.mark.parametrize("form", ["UTF-16 with a mark", "GBK", "gzip", "indented rows", "Git LFS"])
def test_another_form_is_named_before_a_file_is_read_in_parts(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(FORMS[form][0])
    with pytest.raises(BrokenFileError, match=r"UTF|compressed|several lines|LFS"):
        reading.spans(path, 50)


def test_the_proposed_command_makes_rows_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my rows.jsonl"
    path.write_bytes(LINES.encode("gbk"))
    with pytest.raises(BrokenFileError) as caught:
        read(path)
    command = str(caught.value).partition("convert it: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert read(tmp_path / "NEW") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [{"b": 1}]}\n{"a": []}\n',  # two objects are two rows
        '{"conversations": [{"from": "human"}]}\n',
        '{"images": [{"bytes": "x"}]}\n',
        '{"messages": [{"role": "user"}]}\n',
        '{"a": [\n{"b": 1}\n{"c": 1}\n',  # a line that was cut
        '{"a": 1}\n{"b": \n',
        '{"a": 1,\n',
        "no json\n{\n",
        '{"a": "\xff"}\n',
    ],
)
def test_what_looks_alike_is_read_row_by_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode("latin-1"))
    assert form_fault(path.read_bytes(), "x.jsonl") == ""
    assert len(read(path)) == len([line for line in text.split("\n") if line])


def test_a_character_at_the_edge_of_what_is_looked_at_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for shift in range(3):
        row = {"a": "x" * shift + "中" * (HEAD_BYTES // 7)}
        path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 9, encoding="utf-8")
        assert read(path) == [row] * 9


# --- Parquet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.parquet", "x.PARQUET", "x.Parquet"])
def test_the_name_of_a_parquet_file_may_have_capitals(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read(path) == ROWS
    assert reading.spans(path, 50) == []
    assert reading.row_noun(path) == "row"


@pytest.mark.parametrize(
    "images", [[{"bytes": b"x", "path": "a.png"}] * 2, [b"x", b"y"], {"bytes": b"x"}, b"x"]
)
def test_pictures_inside_parquet_are_named(tmp_path: Path, images: Any) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"images": images} for row in ROWS]), path)
    with pytest.raises(BrokenFileError, match=r"'images' holds the media themselves \(.*binary"):
        read(path)


def test_columns_that_are_left_out_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"thumb": b"x"} for row in ROWS]), path)
    assert read(path) == ROWS
    assert capsys.readouterr().err == (
        f"warning: {path}: columns of these types are not read: thumb (binary)\n"
    )


def test_other_forms_under_the_name_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(POINTER)
    with pytest.raises(BrokenFileError, match="a Git LFS pointer"):
        read(path)
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    with pytest.raises(BrokenFileError, match=r"a name that ends in \.parquet"):
        read(path.rename(tmp_path / "x.json"))
