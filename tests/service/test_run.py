"""What is wrong before the service listens is one message."""

import os
import socket

import pytest
from cot_reward.errors import UserError
from cot_reward.reward.settings import RewardSettings
from cot_reward.service.run import serve
from cot_reward.service.settings import ServiceSettings


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_cannot_be_used(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--host {host} --port {port}: cannot be listened on"):
            serve(RewardSettings(), ServiceSettings(host=host, port=port), "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COT_REWARD_SERVICE_KEY", "schl\u00fcssel", "the key in COT_REWARD_SERVICE_KEY"),
        ("OPENAI_API_KEY", "a\nb", "the API key"),
    ],
)
def test_a_key_that_no_header_can_hold(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        serve(RewardSettings(), ServiceSettings(port=0), os.environ.get("OPENAI_API_KEY", "none"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("port", 65536),
        ("max_working", 0),
        ("time_limit", 0),
        ("max_buffered_bytes", 10),
        ("host", ""),
    ],
)
def test_settings_that_cannot_be_used(flag, value):
    with pytest.raises(ValueError, match="--" + flag.replace("_", "-")):
        ServiceSettings(**{flag: value})
