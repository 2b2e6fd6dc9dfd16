"""uv with the mirror, certificate and proxy that pip is set to; uv itself does not read these.

    .envs/uv/bin/python requirements/uv_like_pip.py pip sync ...

A value may hold a password, so none is printed, and none stands in a command line. What is set for
uv itself (UV_DEFAULT_INDEX, ...) wins.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

# pip's setting -> uv's variables; it is handed on when none of them is set.
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "trusted-host": ("UV_INSECURE_HOST",),
    "cert": ("SSL_CERT_FILE",),
    "proxy": ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"),
}
# As for `pip install`: the last one that is set counts.
SECTIONS = ("global", "install", ":env:")
NOTE = """\
pip has an extra-index-url, which uv is not given: it would take another build of torch from there.
If the packages are nowhere else, set UV_DEFAULT_INDEX to that index."""


def settings_of_pip() -> dict[str, str]:
    """Name -> value, of pip's configuration files and of variables such as PIP_INDEX_URL."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found: dict[tuple[str, str], str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        try:
            found[section, key] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return {key: found[s, key] for s in SECTIONS for section, key in found if section == s}


def main() -> int:
    settings = settings_of_pip()
    for name, variables in VARIABLES.items():
        if settings.get(name) and not any(map(os.environ.get, variables)):
            os.environ[variables[0]] = " ".join(settings[name].split())
    uv = Path(sys.executable).with_name("uv")
    code = subprocess.run([uv, *sys.argv[1:]], check=False).returncode
    if code and "extra-index-url" in settings and not os.environ.get("UV_INDEX"):
        print(NOTE, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
