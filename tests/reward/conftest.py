"""A reward model before a server that looks at what it is shown."""

import pytest
from cot_reward import RewardModel


@pytest.fixture
def sees(server):
    """A server that prefers light pictures and long answers."""
    server.configure(sees=True)
    return server


@pytest.fixture
def model(sees):
    with RewardModel(sees.url) as model:
        yield model
