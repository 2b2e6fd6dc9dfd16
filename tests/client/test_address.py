"""Addresses as users write them, and proxies that are named or passed by."""

import pytest
from cot_reward.client.address import api_address, check_address, proxy_of
from cot_reward.client.server import Server, ServerError

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/v1/models", "https://host/v1"),
        ("https://host/chat/completions/", "https://host/v1"),
        ("https://host/openai/v3", "https://host/openai/v3"),
        (" https://host ", "https://host/v1"),
    ],
)
def test_an_address_gets_its_usual_form(given: str, address: str) -> None:
    assert api_address(given) == address


@pytest.mark.parametrize(
    "given",
    ["http://127.0.0.1:80a", "http://host:99999", "http://[::1", "ftp://host", "http://a b", "/",
     "http://ä..b", "http://host\x00"],
)  # fmt: skip
def test_what_is_no_address_is_told(given: str) -> None:
    with pytest.raises(ValueError, match="is no address of a server") as error:
        check_address(given)
    assert repr(given) in str(error.value)
    with pytest.raises(ServerError, match="is no address of a server"):
        Server(given, "key")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://localhost:1/v1", "http://[::1]:8000/v1"]
)
@pytest.mark.parametrize("proxy", ["http://proxy:9", "socks://proxy:9"])
def test_a_server_on_this_machine_has_no_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str
) -> None:
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, proxy)
    assert proxy_of(url) == ""
    Server(url, "key")


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy:9")
    assert proxy_of("http://far/v1") == "proxy:9"
    assert proxy_of("https://far/v1") == ""
    monkeypatch.setenv("no_proxy", "far,other")
    assert proxy_of("http://far/v1") == ""


def test_a_proxy_of_another_kind_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks://proxy:9")
    with pytest.raises(ServerError, match="the proxy socks://proxy:9 cannot be used"):
        Server("http://far/v1", "key")


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "a\x00b"])
def test_a_key_that_is_none_is_explained(key: str) -> None:
    with pytest.raises(ServerError, match="holds a line break or letters that no key has") as error:
        Server("http://127.0.0.1:1/v1", key)
    assert key not in str(error.value)


def test_a_line_break_behind_a_key_is_no_part_of_it() -> None:
    Server("http://127.0.0.1:1/v1", "key\n")
