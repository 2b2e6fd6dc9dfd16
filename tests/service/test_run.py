"""What is wrong before the service listens is one message."""

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
    ("flag", "value"),
    [("port", 65536), ("max_working", 0), ("time_limit", 0), ("max_buffered_bytes", 10)],
)
def test_settings_that_cannot_be_used(flag, value):
    with pytest.raises(ValueError, match="--" + flag.replace("_", "-")):
        ServiceSettings(**{flag: value})
