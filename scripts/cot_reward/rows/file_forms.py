"""Files that are not rows as they stand, told from their beginning: what each is, and what to do.

Otherwise each of their lines would be a bad row of its own, with the same sentence many times.
"""

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cot_reward.media.paths import LFS_FAULT, LFS_POINTER

# How much of a file's beginning `form_fault` needs to see, at most.
HEAD_BYTES = 2**17
BOM = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip --keep"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2 --keep"),
    b"\xfd7zXZ": ("xz", "unxz --keep"),
}
# Of fewer lines that are no UTF-8 each is a bad row.
_MIN_FOREIGN_LINES = 3
# One of these, and an object is a row itself.
_KEYS_OF_ROWS = {
    "conversations", "messages", "prompt", "problem", "text", "chosen", "candidates", "images",
    "videos",
}  # fmt: skip
_WRAPPED = re.compile(r'\{\s*"([^"\\]+)"\s*:\s*\[\s*\{')


def without_bom(data: bytes) -> bytes:
    """The bytes without byte order marks at their beginning; joining files leaves several."""
    while data.startswith(BOM):
        data = data[len(BOM) :]
    return data


def form_fault(head: bytes, name: str) -> str:
    """What the file with this beginning is, and what to do; "" for a file that may hold rows.

    `name` is the file's name, for the commands that are proposed.
    """
    name = shlex.quote(name)
    if head.startswith(LFS_POINTER):
        return LFS_FAULT
    if head.startswith(b"PAR1"):
        return "a Parquet file; give it a name that ends in .parquet"
    for magic, (form, command) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed ({form}); decompress it first: {command} {name}"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page (HTML), not data; download the file itself"
    if head.startswith(_UTF_16_MARKS) or b"\0" in head[:4]:
        mark = head.startswith(_UTF_16_MARKS)
        encoding = "UTF-16" if mark else "UTF-16BE" if head.startswith(b"\0") else "UTF-16LE"
        return _encoding_fault(encoding, name)
    return _foreign_lines(head, name) or _several_lines(without_bom(head.lstrip()), name)


def not_utf_8(error: UnicodeDecodeError, name: str = "FILE") -> str:
    """The message about text that is no UTF-8."""
    return (
        f"not UTF-8 text (byte 0x{error.object[error.start]:02x}); if the file has another "
        f"encoding, convert it, for example: iconv -f GBK -t UTF-8 {name} > NEW"
    )


def wrapping_key(item: Any) -> str:
    """The key whose value is a list of rows, in an object that is no row itself; else ""."""
    if not isinstance(item, Mapping):
        return ""
    if item.keys() & _KEYS_OF_ROWS:
        return ""
    for key, value in item.items():
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            return str(key)
    return ""


def wrapped_fault(key: str, name: str) -> str:
    """The message about an object that holds the rows under a key; `name` as in `form_fault`."""
    return (
        f"one JSON object that has the rows in its {json.dumps(key)}; take the list out: "
        f"jq {shlex.quote(f'.[{json.dumps(key)}]')} {name} > NEW.json"
    )


def _encoding_fault(encoding: str, name: str) -> str:
    return f"{encoding} text, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {name} > NEW"


def _foreign_lines(head: bytes, name: str) -> str:
    """The fault of a file of which most lines are in another encoding than UTF-8."""
    lines = head.split(b"\n")
    if len(head) >= HEAD_BYTES:
        # The last line may be cut within a character.
        lines.pop()
    lines = [line for line in lines if not line.isascii()]
    foreign = [line for line in lines if not _is(line, "utf-8")]
    if len(foreign) < _MIN_FOREIGN_LINES or 2 * len(foreign) <= len(lines):
        return ""
    # Other encodings may fit by chance, so this one is a guess.
    guess = "GB18030" if all(_is(line, "gb18030") for line in foreign) else "LATIN1"
    return (
        f"not UTF-8 text ({len(foreign)} of its first lines are not), perhaps {guess}; convert it: "
        f"iconv -f {guess} -t UTF-8 {name} > NEW"
    )


def _is(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _several_lines(head: bytes, name: str) -> str:
    """The fault of a file whose first object goes over several lines."""
    text = head.decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.strip()]
    # A line that was cut is followed by a line that is well.
    if len(lines) < 2 or not text.startswith("{") or any(map(_is_json, lines[:2])):
        return ""
    item = None
    with suppress(ValueError, RecursionError):
        item, _ = json.JSONDecoder().raw_decode(text)
    found = _WRAPPED.match(text)
    if key := wrapping_key(item):
        return wrapped_fault(key, name)
    if item is not None:
        return (
            "JSON objects that go over several lines; a row needs a line of its own: "
            f"jq -c . {name} > NEW.jsonl"
        )
    return wrapped_fault(found[1], name) if found and found[1] not in _KEYS_OF_ROWS else ""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
