"""Rows of JSON, JSONL and Parquet files, one at a time: memory does not grow with the file."""

import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import orjson

from cot_reward.errors import UserError
from cot_reward.store import dump

# What is read at once, in characters, and the longest entry of a JSON list that is waited for.
_CHUNK = 2**18
_LONGEST = 2**26
# Standard input, as a file name.
STDIN = Path("-")

_BOM = b"\xef\xbb\xbf"
# How a list begins that was saved as JSONL. Anything else there is a line, and a bad one at worst.
_LIST_IN_JSONL = re.compile(rb"\[[ \t\r]*(?:\{|\n|\Z|\]\s*\Z)")

Row = dict[str, Any] | ValueError
# The message about a row that is valid JSON and no object.
NOT_AN_OBJECT = "not an object"


class BrokenFileError(UserError):
    """A file that cannot be read to its end; `line` counts from 1 (0: it is not known)."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def read_rows(path: Path, may_be_empty: bool = False) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON list, JSONL or Parquet file (`-`: standard input, JSON or JSONL).

    Each comes with its position from 1: list index, line, or row. A row that is no JSON object
    comes as a ValueError in its place, so that one bad line costs one row. Raises UserError when
    the file is missing, empty (unless `may_be_empty`), or, as a list or Parquet file, broken; of a
    broken list the entries before the fault come first.
    """
    try:
        if path.suffix == ".parquet":
            yield from enumerate(_parquet(path), 1)
            return
        with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
            assert isinstance(file, io.BufferedReader)
            if _is_list(file, path):
                for number, item in enumerate(_list(file, path), 1):
                    yield number, _checked(item)
                return
            seen = False
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                if line.strip():
                    seen = True
                    yield number, _object(line)
            if not seen and not may_be_empty:
                raise UserError(f"{path}: empty")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path}: cannot be read: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def spans(path: Path, size: int) -> list[tuple[int, int]]:
    """Parts (from byte, to byte) of `size` bytes that `read_span` reads; one for an empty file.

    An empty list for what can only be read from its beginning: JSON lists, Parquet, pipes.
    """
    if path.suffix == ".parquet" or not path.is_file():
        return []
    with path.open("rb") as file:
        if _is_list(file, path):
            return []
    end = path.stat().st_size
    return [(start, min(start + size, end)) for start in range(0, max(end, 1), size)]


def read_span(path: Path, start: int, end: int) -> Iterator[tuple[int, Row | None]]:
    """The lines of a JSONL file that begin in these bytes, numbered from 1; None: a blank one.

    As `read_rows` reads them, but for integers of more than 64 bits, which come as floats.
    """
    with path.open("rb") as file:
        at = start
        if start:
            file.seek(start - 1)
            at += len(file.readline()) - 1
        number = 0
        while at < end and (line := file.readline()):
            at += len(line)
            number += 1
            if number == 1 and not start:
                line = line.removeprefix(_BOM)
            yield number, _fast_object(line) if line.strip() else None


def row_noun(path: Path) -> str:
    """What a row's position counts: "line" in JSONL, "row" in a JSON list or Parquet file."""
    if path.suffix == ".parquet":
        return "row"
    with path.open("rb") as file:
        return "row" if _is_list(file, path) else "line"


def _is_list(file: io.BufferedReader, path: Path) -> bool:
    head = file.peek(4096).removeprefix(_BOM).lstrip()
    return bool(_LIST_IN_JSONL.match(head) if path.suffix == ".jsonl" else head[:1] == b"[")


def _fast_object(line: bytes) -> Row:
    # Three times as fast, and stricter: what it refuses, the standard library may know.
    with suppress(orjson.JSONDecodeError):
        item = orjson.loads(line)
        return item if isinstance(item, dict) else ValueError(NOT_AN_OBJECT)
    return _object(line)


def _object(line: bytes) -> Row:
    try:
        item = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")
    return _checked(item)


def _checked(item: Any) -> Row:
    if not isinstance(item, dict):
        return ValueError(NOT_AN_OBJECT)
    try:
        # JSON can spell half a character (a lone surrogate); no file or request can hold it.
        dump(item).encode()
    except UnicodeEncodeError as error:
        return ValueError(f"not valid Unicode: {error}")
    except (TypeError, RecursionError) as error:
        return ValueError(f"a value that JSON cannot hold: {error}")
    return item


def _list(file: IO[bytes], path: Path) -> Iterator[Any]:
    """The entries of a JSON list.

    By the standard library's decoder: ijson, which streams lists faster, turns half a character
    into "?" without a word, and knows neither NaN nor integers above 64 bits.
    """
    text = io.TextIOWrapper(file, "utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    buffer, at = text.read(_CHUNK), 0
    lines_before_buffer = 0

    def more() -> bool:
        nonlocal buffer, at, lines_before_buffer
        # Twice as much each time, so that a long entry is not decoded too often.
        added = text.read(max(_CHUNK, len(buffer) - at))
        if added:
            lines_before_buffer += buffer.count("\n", 0, at)
            buffer, at = buffer[at:] + added, 0
        return bool(added)

    def skip_space() -> str:
        """The next character that is no white space; "" at the end of the file."""
        nonlocal at
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            if at < len(buffer):
                return buffer[at]
            if not more():
                return ""

    def broken(why: object, position: int | None = None) -> UserError:
        end = at if position is None else position
        line = 1 + lines_before_buffer + buffer.count("\n", 0, end)
        return BrokenFileError(
            f"{path}:{line}: not a complete JSON list ({why}); was its writer stopped half-way?",
            line,
        )

    try:
        skip_space()
        at += 1
        if skip_space() != "]":
            count = 0
            while True:
                skip_space()
                while True:
                    try:
                        item, end = decode(buffer, at)
                        # A number at the buffer's end may go on: "1" may be the head of "1e+5".
                        whole = isinstance(item, dict | list | str) or len(buffer) - end >= 3
                        if whole or not more():
                            at = end
                            break
                    except json.JSONDecodeError as error:
                        if len(buffer) - at > _LONGEST or not more():
                            why = f"entry {count + 1}: {error.msg}"
                            raise broken(why, error.pos) from None
                yield item
                count += 1
                following = skip_space()
                if following != ",":
                    break
                at += 1
        if skip_space() != "]":
            raise broken(f"after entry {count}: {buffer[at : at + 20]!r} where ',' or ']' belongs")
        at += 1
        if skip_space():
            raise broken(f"something stands behind its end: {buffer[at : at + 20]!r}")
    except (UnicodeDecodeError, BrokenFileError):
        raise
    except (ValueError, RecursionError) as error:
        raise broken(error) from None
    finally:
        text.detach()


def _parquet(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise FileNotFoundError(path)
    # Imported here: it takes a third of a second.
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    def fits(kind: Any) -> bool:
        """Whether JSON can hold it; data sets carry times and pictures beside what is read."""
        if types.is_dictionary(kind):
            return fits(kind.value_type)
        if types.is_nested(kind):
            return all(fits(kind.field(n).type) for n in range(kind.num_fields))
        return any(
            of(kind)
            for of in (types.is_string, types.is_large_string, types.is_string_view,
                       types.is_integer, types.is_floating, types.is_boolean, types.is_null)
        )  # fmt: skip

    try:
        with ParquetFile(path) as table:
            columns = [field.name for field in table.schema_arrow if fits(field.type)]
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    yield _checked(row)
    except ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
