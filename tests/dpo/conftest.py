"""Fixtures that the tests of stage 3 share."""

from pathlib import Path

import pytest
from helpers.dpo import FORM, save_model, varied, write


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """A file of eight DPO rows about the pictures of `folder`."""
    return write(tmp_path / "pairs.jsonl", varied(8, form=FORM))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each supported type, saved."""
    kinds = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in kinds}
