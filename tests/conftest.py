"""Fixtures that several test files share."""

import os
import time

import hypothesis
import pytest
from helpers.client_world import World
from helpers.environments import REPO
from helpers.server import MockServer

# No test asserts a duration: an example may take as long as a busy machine needs.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# What DeepSpeed compiles for the trainings of the tests, in a minute at most.
COMPILED, COMPILING_SECONDS = REPO / ".envs/torch_extensions", 300


def pytest_configure(config):
    """A killed test leaves the lock of its compiler, for which torch waits without end."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(COMPILED)
    if not hasattr(config, "workerinput"):  # the tests' first process, before any worker starts
        for lock in COMPILED.rglob("lock"):
            if time.time() - lock.stat().st_mtime > COMPILING_SECONDS:
                lock.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def server():
    """A mock of an OpenAI-compatible server, in another process."""
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random model for stage 3, saved."""
    from helpers.dpo import save_model

    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pictures that stage 3's rows name."""
    from helpers.dpo import save_pictures

    return save_pictures(tmp_path_factory.mktemp("media"))


@pytest.fixture
def world(tmp_path, server):
    """Comparisons on disk and the client's command line about them."""
    return World(tmp_path, server)
