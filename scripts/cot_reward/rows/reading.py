"""Rows of JSON, JSONL and Parquet files, one at a time: memory does not grow with the file."""

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import IO, Any

import orjson

from cot_reward.errors import UserError
from cot_reward.media.paths import LFS_FAULT, LFS_POINTER
from cot_reward.rows.file_forms import (
    HEAD_BYTES,
    form_fault,
    not_utf_8,
    without_bom,
    wrapped_fault,
    wrapping_key,
)
from cot_reward.store import dump

# How much of a JSON list is read at once, and the longest entry that one may have.
CHUNK_CHARACTERS = 2**18
MAX_ENTRY_CHARACTERS = 2**26
# Standard input, as a file name.
STDIN = Path("-")

# Columns that name media by their paths.
_MEDIA_COLUMNS = ("images", "videos", "image", "video", "candidates", "context")
# The beginning of a JSON list in a file that is called JSONL. Any other beginning is a line.
_LIST_IN_JSONL = re.compile(rb"\[[ \t\r]*(?:\{|\n|\Z|\]\s*\Z)")

Row = dict[str, Any] | ValueError
# The message about a row that is valid JSON and not an object.
NOT_AN_OBJECT = "not an object"


class BrokenFileError(UserError):
    """A file that cannot be read to its end.

    `where` is the file, with its line where that is known (`line`, from 1; else 0), `why` the rest
    of the message.
    """

    def __init__(self, path: Path, why: str, line: int = 0) -> None:
        self.where, self.why, self.line = f"{path}:{line}" if line else str(path), why, line
        super().__init__(f"{self.where}: {why}")


def read_rows(path: Path, may_be_empty: bool = False) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON list, JSONL or Parquet file (`-`: standard input, JSON or JSONL).

    Each row comes with its position from 1: list index, line, or row. In place of a row that is
    not a JSON object comes a ValueError, so that one bad line costs one row. Raises UserError when
    the file is missing, empty (unless `may_be_empty`), a broken list or Parquet file, or of another
    form (`rows.file_forms`). The entries of a broken list before its fault come first.
    """
    try:
        if _is_parquet(path):
            yield from enumerate(_parquet(path), 1)
            return
        with nullcontext(sys.stdin.buffer) if path == STDIN else _open(path) as file:
            assert isinstance(file, io.BufferedReader)
            _check_form(file, path)
            if _is_list(file, path):
                for number, item in enumerate(_list(file, path), 1):
                    yield number, _checked(item)
                return
            count, last = 0, None
            for number, line in enumerate(file, 1):
                if (line := without_bom(line)).strip():
                    if last:
                        yield last
                    count, last = count + 1, (number, _object(line))
            if count == 1 and last and (key := wrapping_key(last[1])):
                raise BrokenFileError(path, wrapped_fault(key, quote(path.name)), last[0])
            if last:
                yield last
            elif not may_be_empty:
                raise UserError(f"{path}: empty")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BrokenFileError(
            path, f"cannot be read: {not_utf_8(error, quote(path.name))}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def spans(path: Path, size: int) -> list[tuple[int, int]]:
    """Parts (from byte, to byte) of `size` bytes for `read_span`; one part for an empty file.

    An empty list for JSON lists, Parquet files and pipes, which can only be read from the start.
    Raises BrokenFileError for a file of another form, and OSError.
    """
    if _is_parquet(path) or not path.is_file():
        return []
    with _open(path) as file:
        _check_form(file, path)
        if _is_list(file, path):
            return []
    end = path.stat().st_size
    return [(start, min(start + size, end)) for start in range(0, max(end, 1), size)]


def read_span(path: Path, start: int, end: int) -> Iterator[tuple[int, Row | None]]:
    """The lines of a JSONL file that begin in these bytes, numbered from 1; None for a blank line.

    Rows are as `read_rows` gives them, but integers of more than 64 bits come as floats.
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
            line = without_bom(line)
            yield number, _fast_object(line) if line.strip() else None


def row_noun(path: Path) -> str:
    """What a row's position counts: "line" in JSONL, "row" in a JSON list or Parquet file.

    "line" for a pipe, which can be read only once. Raises UserError for an unreadable file.
    """
    if _is_parquet(path):
        return "row"
    try:
        if not path.is_file():
            return "line"
        with _open(path) as file:
            return "row" if _is_list(file, path) else "line"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _open(path: Path) -> io.BufferedReader:
    file = path.open("rb", buffering=HEAD_BYTES)
    assert isinstance(file, io.BufferedReader)
    return file


def _check_form(file: io.BufferedReader, path: Path) -> None:
    """Raises BrokenFileError for a file that cannot hold rows as it stands."""
    if fault := form_fault(file.peek(HEAD_BYTES)[:HEAD_BYTES], path.name):
        raise BrokenFileError(path, fault)


def _is_list(file: io.BufferedReader, path: Path) -> bool:
    head = without_bom(file.peek(4096).lstrip()).lstrip()
    return bool(_LIST_IN_JSONL.match(head) if path.suffix.lower() == ".jsonl" else head[:1] == b"[")


def _fast_object(line: bytes) -> Row:
    # orjson is three times as fast and stricter: the standard library may read what it refuses.
    with suppress(orjson.JSONDecodeError):
        item = orjson.loads(line)
        return item if isinstance(item, dict) else ValueError(NOT_AN_OBJECT)
    return _object(line)


def _object(line: bytes) -> Row:
    try:
        item = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(not_utf_8(error))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")
    return _checked(item)


def _checked(item: Any) -> Row:
    if not isinstance(item, dict):
        return ValueError(NOT_AN_OBJECT)
    try:
        # JSON can hold a lone surrogate (half a character); a UTF-8 file or request cannot.
        dump(item).encode()
    except UnicodeEncodeError as error:
        return ValueError(f"not valid Unicode: {error}")
    except (TypeError, RecursionError) as error:
        return ValueError(f"a value that JSON cannot hold: {error}")
    return item


def _list(file: IO[bytes], path: Path) -> Iterator[Any]:
    """The entries of a JSON list. Raises BrokenFileError after the last good entry."""
    text = io.TextIOWrapper(file, "utf-8-sig")
    entries = _ListReader(text, path)
    try:
        yield from entries.read()
    except (UnicodeDecodeError, BrokenFileError):
        raise
    except (ValueError, RecursionError) as error:
        raise entries.broken(error) from None
    finally:
        text.detach()


class _ListReader:
    """Reads a JSON list entry by entry, with the standard library's decoder.

    ijson, which streams lists faster, replaces a lone surrogate by "?" without an error, and reads
    neither NaN nor integers above 64 bits.
    """

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text, self._path = text, path
        self._decode = json.JSONDecoder().raw_decode
        self._buffer, self._at = text.read(CHUNK_CHARACTERS), 0
        self._lines_before_buffer = 0

    def read(self) -> Iterator[Any]:
        self._next_character()
        self._at += 1
        count = 0
        if self._next_character() != "]":
            count = 1
            yield self._entry(count)
            while self._next_character() == ",":
                self._at += 1
                self._next_character()
                count += 1
                yield self._entry(count)
        if self._next_character() != "]":
            raise self.broken(f"after entry {count}: {self._found()} where ',' or ']' belongs")
        self._at += 1
        if self._next_character():
            raise self.broken(f"something stands behind its end: {self._found()}")

    def broken(self, why: object, position: int | None = None) -> BrokenFileError:
        """The error for a fault at a position in the buffer (None: the present one)."""
        end = self._at if position is None else position
        line = 1 + self._lines_before_buffer + self._buffer.count("\n", 0, end)
        told = (
            f"not a complete JSON list ({why}); mend the file, or was its writer stopped half-way?"
        )
        return BrokenFileError(self._path, told, line)

    def _entry(self, number: int) -> Any:
        while True:
            try:
                item, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                too_long = len(self._buffer) - self._at > MAX_ENTRY_CHARACTERS
                if too_long or not self._read_more():
                    raise self.broken(f"entry {number}: {error.msg}", error.pos) from None
                continue
            # A number at the buffer's end may go on: "1" may be the start of "1e+5".
            complete = isinstance(item, dict | list | str) or len(self._buffer) - end >= 3
            if complete or not self._read_more():
                self._at = end
                return item

    def _next_character(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                character = self._buffer[self._at]
                if character not in " \t\r\n\ufeff":
                    return character
                self._at += 1
            if not self._read_more():
                return ""

    def _read_more(self) -> bool:
        # Twice as much each time, so that a long entry is not decoded too often.
        added = self._text.read(max(CHUNK_CHARACTERS, len(self._buffer) - self._at))
        if added:
            self._lines_before_buffer += self._buffer.count("\n", 0, self._at)
            self._buffer, self._at = self._buffer[self._at :] + added, 0
        return bool(added)

    def _found(self) -> str:
        return repr(self._buffer[self._at : self._at + 20])


def _parquet(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise BrokenFileError(path, LFS_FAULT)
    # Imported here, because it takes a third of a second.
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    def is_json(kind: Any) -> bool:
        """Whether `datasets` wrote values of several types there, as the content of messages."""
        return getattr(kind, "extension_name", "") == "arrow.json"

    def decoded(value: Any, kind: Any) -> Any:
        """The value, with the JSON text in it read."""
        if value is None:
            return None
        if is_json(kind):
            return json.loads(value)
        if types.is_struct(kind):
            fields = (kind.field(n) for n in range(kind.num_fields))
            return {field.name: decoded(value[field.name], field.type) for field in fields}
        if types.is_list(kind) or types.is_large_list(kind):
            return [decoded(item, kind.value_type) for item in value]
        return value

    def fits(kind: Any) -> bool:
        """Whether JSON can hold the type; data sets have further columns of times and pictures."""
        if types.is_dictionary(kind):
            return fits(kind.value_type)
        if types.is_nested(kind):
            return all(fits(kind.field(n).type) for n in range(kind.num_fields))
        return is_json(kind) or any(
            of(kind)
            for of in (types.is_string, types.is_large_string, types.is_string_view,
                       types.is_integer, types.is_floating, types.is_boolean, types.is_null)
        )  # fmt: skip

    try:
        with ParquetFile(path) as table:
            columns = [field.name for field in table.schema_arrow if fits(field.type)]
            mixed = {
                field.name: field.type
                for field in table.schema_arrow
                if field.name in columns and "arrow.json" in str(field.type)
            }
            _tell_left_out(path, {f.name: str(f.type) for f in table.schema_arrow}, columns)
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    yield _checked(
                        row | {name: decoded(row[name], kind) for name, kind in mixed.items()}
                    )
    except ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None


def _tell_left_out(path: Path, types: Mapping[str, str], read: Sequence[str]) -> None:
    """Warn of columns that are not read. Raises BrokenFileError when media are among them."""
    left_out = {name: kind for name, kind in types.items() if name not in read}
    for name in _MEDIA_COLUMNS:
        if name in left_out:
            raise BrokenFileError(
                path,
                f"the column '{name}' holds the media themselves ({left_out[name]:.80}), and rows "
                "hold paths; write each medium to a file, and its path into the column",
            )
    if left_out:
        names = ", ".join(f"{name} ({kind:.40})" for name, kind in left_out.items())
        print(f"warning: {path}: columns of these types are not read: {names}", file=sys.stderr)
