"""The address of a server: its usual forms, and the proxy on the way to it."""

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# What a user may copy behind the address of the API.
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


def api_address(given: str) -> str:
    """The address of the API: with a scheme, without an endpoint, with /v1 where it has no path."""
    url = given.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    for endpoint in _ENDPOINTS:
        url = url.removesuffix(endpoint)
    return url if urlsplit(url).path.strip("/") else f"{url}/v1"


def check_address(given: str) -> None:
    """Raise ValueError for an address that cannot be used, or that messages must not hold."""
    if "@" in given or "?" in given:
        raise ValueError(
            "the address of a server must not hold a name, password or query; give the key as "
            "api_key, or by the environment variable of --api-key-env"
        )
    try:
        parts = urlsplit(api_address(given))
        _ = parts.port
        # As a name server is asked for it.
        host = (parts.hostname or "").encode("idna")
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("it has no http:// or no host")
        if not given.strip().isprintable() or b" " in host:
            raise ValueError("it holds a letter that no address has")
    except ValueError as error:
        raise ValueError(
            f"{given!r} is no address of a server ({error}); write http://HOST:PORT"
        ) from None


def proxy_of(url: str) -> str:
    """Host and port of the proxy that the environment names for this address; "" for none.

    A server on this machine has none. A name or password of the proxy is left out.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(host):
        return ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    return proxy.rpartition("@")[2] if "@" in proxy else proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
