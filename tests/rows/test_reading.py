"""Rows of JSON, JSONL and Parquet files, complete and broken."""

import io
import json
import sys
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cot_reward.errors import UserError
from cot_reward.rows import reading
from cot_reward.rows.reading import read_rows
from cot_reward.store import write_jsonl
from helpers.rows import write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def rows(path: Path) -> list[object]:
    return [
        (number, row if isinstance(row, dict) else type(row)) for number, row in read_rows(path)
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff", " \n"])
def test_a_list_and_lines_read_alike(tmp_path, mark):
    path = tmp_path / "x"
    path.write_text(mark + '[{"a": 1}, {"a": "é"}]', encoding="utf-8")
    as_list = rows(path)
    path.write_text(mark.strip() + '{"a": 1}\n{"a": "é"}\n', encoding="utf-8")
    assert rows(path) == as_list == [(1, {"a": 1}), (2, {"a": "é"})]


def test_a_bad_line_costs_itself_and_keeps_its_number(tmp_path):
    path = tmp_path / "x.jsonl"
    deep = "[" * 100_000
    half = '{"a": "\\ud83d"}'
    path.write_text(f'{{"a": 1}}\n{{"a": \n\n[1]\n7\n{deep}\n{half}\n{{"a": 2}}', encoding="utf-8")
    assert [row for _, row in rows(path)] == [{"a": 1}, *[ValueError] * 5, {"a": 2}]
    assert [number for number, _ in rows(path)] == [1, 2, 4, 5, 6, 7, 8]


def test_a_bad_item_of_a_list_costs_itself(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, null, [1], "b", {"a": "\\udc00"}, {"a": 2}]')
    found = rows(path)
    assert [row for _, row in found] == [{"a": 1}, *[ValueError] * 4, {"a": 2}]
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("mark", ["", "\ufeff", " \n"])
@pytest.mark.parametrize("first", ["[1]", "[]", "[torn", "[1, 2", '["a"]', "[[{"])
def test_a_bad_first_line_costs_itself(tmp_path, first, mark):
    """The line begins as a list does."""
    path = tmp_path / "x.jsonl"
    lines = [{"a": n} for n in range(3000)]
    good = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(f"{mark}{first}\n{good}", encoding="utf-8")
    number = 1 + mark.count("\n")
    assert rows(path) == [(number, ValueError), *enumerate(lines, number + 1)]
    assert reading.spans(path, 2**20) == [(0, path.stat().st_size)]
    # Only in a file whose name says that it has lines.
    with pytest.raises(UserError, match="not a complete JSON list"):
        rows(path.rename(tmp_path / "x.json"))


@pytest.mark.parametrize("mark", ["", "\ufeff", " \n"])
@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": 2}]',
        '[\n{"a": 1},\n {"a": 2}\n]\n',
        '[ {"a":1},\n\t{"a": 2}]',
        '[\r\n  {"a": 1},\r\n  {"a": 2}\r\n]\r\n',
        "[]",
        "[ ]\n\n",
    ],
)
def test_a_list_that_was_saved_as_lines_is_a_list(tmp_path, content, mark):
    path = tmp_path / "x.jsonl"
    path.write_bytes((mark + content).encode())
    assert rows(path) == ([(1, {"a": 1}), (2, {"a": 2})] if "a" in content else [])
    assert reading.spans(path, 4) == []


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_a_file_may_be_empty_where_the_caller_allows_it(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content, encoding="utf-8")
    assert list(read_rows(path, may_be_empty=True)) == []
    with pytest.raises(UserError, match="empty"):
        rows(path)
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(tmp_path / "y.jsonl", may_be_empty=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'[{"a": 1}, {"a"', "not a complete JSON list"),
        (b"[" * 100_000, "not a complete JSON list"),
        (b'[{"a": "\xff"}]', "cannot be read"),
    ],
)
def test_a_file_that_is_no_data_is_named(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows(path)
    assert str(path) in str(error.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot be read"):
        rows(tmp_path)


JSON = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.booleans(),
    max_size=4,
)


@given(st.lists(JSON, min_size=1, max_size=5))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
def test_what_is_written_is_read(tmp_path, made):
    write_jsonl(tmp_path / "x.jsonl", made)
    assert [row for _, row in read_rows(tmp_path / "x.jsonl")] == made


def test_a_row_that_is_too_deep_to_write_costs_itself(tmp_path):
    path = tmp_path / "x.jsonl"
    deep = [f'{{"a": {"[" * depth}{"]" * depth}}}' for depth in (5, 985, 990, 995, 5000)]
    path.write_text("\n".join([*deep, '{"a": 1}']))
    found = rows(path)
    assert found[0][1] == {"a": [[[[[]]]]]}
    assert found[-2:] == [(5, ValueError), (6, {"a": 1})]


@pytest.mark.parametrize("number", ["0.0", "1e+5", "-1.25E-3", "10", "0", "true", "null"])
def test_an_entry_that_is_cut_by_the_edge_of_a_chunk_is_one_entry(tmp_path, number):
    path = tmp_path / "x.json"
    for chunk in range(1, 12):
        path.write_text(f'[{number}, {{"a": {number}}}, {number}]')
        before, reading.CHUNK_CHARACTERS = reading.CHUNK_CHARACTERS, chunk
        try:
            found = rows(path)
        finally:
            reading.CHUNK_CHARACTERS = before
        assert found == [(1, ValueError), (2, {"a": json.loads(number)}), (3, ValueError)]


def test_a_line_that_is_not_unicode_costs_itself(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}\n')
    assert rows(path) == [(1, {"a": 1}), (2, ValueError), (3, {"a": 2})]


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
        ),
        max_size=8,
    ),
    st.integers(1, 12),
    st.sampled_from([None, 1]),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400
)
def test_a_list_reads_as_the_standard_library_reads_it(tmp_path, made, chunk, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made, indent=indent))
    before, reading.CHUNK_CHARACTERS = (
        reading.CHUNK_CHARACTERS,
        chunk,
    )  # entries fall across the edges of chunks
    try:
        read = list(read_rows(path))
    finally:
        reading.CHUNK_CHARACTERS = before
    assert [number for number, _ in read] == list(range(1, len(made) + 1))
    for (_, row), item in zip(read, made, strict=True):
        if isinstance(row, dict):
            assert json.dumps(row) == json.dumps(item)
        else:
            assert not isinstance(item, dict) or "\\ud" in json.dumps(item)


@pytest.mark.parametrize("broken", ["[1 2]", "[1,]", "[{}}", "[{}] {}", "[,1]", "[{},,{}]", "["])
def test_a_list_with_a_fault_is_an_error(tmp_path, broken):
    path = tmp_path / "x.json"
    path.write_text(broken)
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
    with pytest.raises(UserError, match="not a complete JSON list"):
        rows(path)


def test_parquet_reads_like_json(tmp_path):
    path = tmp_path / "x.parquet"
    made = [{"prompt": f"é {n}", "images": ["a", "b"], "n": n} for n in range(600)]
    pq.write_table(pa.Table.from_pylist(made), path)
    assert [row for _, row in read_rows(path)] == made
    # Data sets have further columns of pictures and times, which are left out.
    further = {"pixels": [b"\xff"], "when": datetime(1, 1, 1), "size": {"w": 1, "raw": b"x"}}
    pq.write_table(pa.Table.from_pylist([made[0] | further, made[1] | further]), path)
    assert [row for _, row in read_rows(path)] == made[:2]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        rows(path)
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "y.parquet")


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": 2}]', b'{"a": 1}\n{"a": 2}\n'])
def test_standard_input(monkeypatch, content):
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))
    monkeypatch.setattr(sys, "stdin", stream)
    assert rows(Path("-")) == [(1, {"a": 1}), (2, {"a": 2})]


@given(
    st.lists(
        st.one_of(JSON, st.sampled_from(["", "  ", "no json", "[]", "[1", '{"torn'])), max_size=8
    ),
    st.integers(1, 60),
    st.sampled_from(["", "\ufeff"]),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_parts_of_a_file_are_the_file(tmp_path, made, size, mark, ended):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in made]
    path = tmp_path / "x.jsonl"
    path.write_text(mark + "\n".join(lines) + "\n" * ended, encoding="utf-8")
    read, before = [], 0
    for start, end in reading.spans(path, size):
        number = 0
        for number, row in reading.read_span(path, start, end):
            if row is not None:
                read.append((before + number, row if isinstance(row, dict) else type(row)))
        before += number
    expected = rows(path) if any(line.strip() for line in lines) else []
    assert [number for number, _ in read] == [number for number, _ in expected]
    # Integers of more than 64 bits come as floats.
    rough = [json.loads(json.dumps(row, default=str), parse_int=float) for _, row in read]
    assert rough == [
        json.loads(json.dumps(row, default=str), parse_int=float) for _, row in expected
    ]


def test_parquet_with_messages_that_datasets_wrote_as_json(tmp_path):
    """It does so where parts of a content have different keys."""
    import datasets

    parts = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    made = [
        {"prompt": [{"role": "user", "content": parts}], "n": 1},
        {"prompt": [{"role": "user", "content": None}], "n": 2},
        {"prompt": None, "n": 3},
    ]
    source = write_lines(tmp_path / "x.jsonl", made)
    cache = str(tmp_path / "cache")
    read = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=cache)
    read.to_parquet(tmp_path / "x.parquet")
    assert "arrow.json" in str(pq.read_schema(tmp_path / "x.parquet"))
    assert [row for _, row in read_rows(tmp_path / "x.parquet")] == made


def test_lists_and_parquet_are_read_in_one_piece(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('\n [{"a": 1}]')
    assert reading.spans(path, 4) == []
    assert reading.spans(tmp_path / "x.parquet", 4) == []
    assert reading.spans(tmp_path / "missing", 4) == []
