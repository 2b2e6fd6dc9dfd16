"""Fixtures that the tests of the chain share."""

from pathlib import Path

import pytest
from helpers.environments import REPO
from helpers.rows import read_lines, write_lines


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Flags of a chain whose data are the samples, and whose base is a folder."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    cold_start = tmp_path / "cold_start.json"
    cold_start.write_text((REPO / "dataset/sample/sft.json").read_text())
    sample = "dataset/sample"
    rows = read_lines(REPO / sample / "comparisons.jsonl")
    # The samples of all forms are about the same comparisons, so that their texts are changed.
    heldout = write_lines(tmp_path / "heldout.jsonl", [r | {"text": "another"} for r in rows[:1]])
    return [
        "--base", str(base), "--cold-start", str(cold_start), "--runs", str(tmp_path / "runs"),
        "--sampling", f"{sample}/raw.json", "--sampling-image-root", sample,
        "--heldout", str(heldout), "--heldout-image-root", sample,
        "--gpus", "0",
    ]  # fmt: skip
