"""Fixtures that the tests of GRPO share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a template, and raw comparisons whose first image is the better one."""
    from helpers.grpo import save_world

    return save_world(tmp_path_factory.mktemp("comparisons"))


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory, comparisons: Path) -> Path:
    """A tiny model that writes well-formed texts with either answer."""
    from helpers.dpo import save_model
    from helpers.grpo import save_speaker

    base = save_model(tmp_path_factory.mktemp("grpo_base"))
    return save_speaker(base, comparisons, tmp_path_factory.mktemp("speaker"))
