"""LLaMA-Factory's register of data sets (dataset_info.json): an entry for a file of rows."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.preparing.settings import RegisterSettings
from cot_reward.rows.reading import read_rows
from cot_reward.rows.validation import RowError, check_row
from cot_reward.store import read_json, write_json

_INFO = "dataset_info.json"


def register(settings: RegisterSettings) -> int:
    """Name a file of SFT or DPO rows for LLaMA-Factory; returns the exit code. Raises UserError."""
    number, row = next(iter(read_rows(settings.file)))
    if isinstance(row, ValueError):
        raise UserError(f"{settings.file}:{number}: {row}")
    info = settings.media_root / _INFO
    known: dict[str, Any] = read_json(info) if info.exists() else {}
    entry = {
        "file_name": os.path.relpath(settings.file, settings.media_root),
        **_entry(row, settings.file),
    }
    if known.get(settings.name, entry) != entry and not settings.replace:
        raise UserError(
            f"{info}: has another data set '{settings.name}' ({known[settings.name]}); choose "
            "another name, or give --replace"
        )
    write_json(info, known | {settings.name: entry})
    print(f"{info}: '{settings.name}' is {entry['file_name']}; dataset: {settings.name} names it")
    return 0


def _entry(row: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """How LLaMA-Factory reads rows like this one. Raises UserError for a row of no use to it."""
    try:
        check_row(row)
    except RowError as error:
        raise UserError(
            f"{file}: its first row cannot be trained on: {error}; comparisons (rows of `convert`) "
            "are for the client, which writes rows to train on"
        ) from None
    # It looks up every column that is named.
    media = {name: name for name in ("images", "videos") if name in row}
    if "conversations" in row:
        return {"formatting": "sharegpt", "columns": {"messages": "conversations", **media}}
    texts = {"prompt": "problem", "chosen": "chosen", "rejected": "rejected"}
    return {"ranking": True, "columns": texts | media}
