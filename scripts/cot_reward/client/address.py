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
    """Raise ValueError for an address with a part that files and messages must not hold."""
    if "@" in given or "?" in given:
        raise ValueError(
            "the address of a server must not hold a name, password or query; give the key as "
            "api_key, or by the environment variable of --api-key-env"
        )


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
