"""A page in headless Chromium, where Chromium and its driver are installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync", "lang=en",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver on this machine",
)


@contextmanager
def opened(page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """The driver with the page open. Fails for any error or warning on its console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.get(page.resolve().as_uri())
        yield driver
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
