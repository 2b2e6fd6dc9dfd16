"""Installation, before anything is fetched: this machine's Python and driver, and pip's mirror."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.environments import REPO

SECRET = "s3cret"
# With pip, and without packages of an environment.
PYTHON = Path(sys.base_prefix) / f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
PINS = ("requirements.txt", "requirements/sft.txt", "requirements/serve.txt")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The only folder on PATH; it has this Python as python3.11."""
    script(tmp_path / "bin/python3.11", f'exec {PYTHON} "$@"\n')
    # Nothing else: the machine that runs the tests may have a GPU.
    for name in ("make", "bash", "sh", "mkdir", "touch"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path / "bin"


def make(machine: Path, *arguments: str) -> tuple[int, str, bool]:
    """Exit code and output of a make, and whether it began to fetch."""
    envs = machine.parent / "envs"
    done = subprocess.run(
        ["make", f"ENVS={envs}", *(part.replace("ENVS/", f"{envs}/") for part in arguments)],
        cwd=REPO,
        env={"PATH": str(machine), "HOME": str(machine.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, (envs / "uv").exists()


def gpu(machine: Path, *drivers: str) -> None:
    script(machine / "nvidia-smi", "".join(f"echo {driver}\n" for driver in drivers))


@pytest.mark.parametrize("drivers", [("550.54.15",), ("580.65.06", "535.288.01"), ("470.82",)])
def test_a_driver_that_is_too_old(machine: Path, drivers: tuple[str, ...]) -> None:
    gpu(machine, *drivers)
    code, output, fetched = make(machine, "envs")
    assert code
    assert not fetched
    assert f"GPU is {min(drivers)}; torch and vLLM are built for CUDA 13.0, which" in output
    assert "needs 580 or later" in output
    # The ways on that it names.
    assert make(machine, "DRIVER_CHECK=no", "ENVS/machine-serve")[0] == 0
    assert make(machine, "SERVE=serve-cpu", "ENVS/machine-serve-cpu")[0] == 0


@pytest.mark.parametrize("driver", ["580.65.06", "595.10", "[N/A]"])
def test_a_driver_that_is_new_enough_or_unknown(machine: Path, driver: str) -> None:
    gpu(machine, f"'{driver}'")
    code, output, _ = make(machine, "ENVS/machine-serve")
    assert (code, output) == (0, "")
    # It is said once, and not at every make.
    gpu(machine, "470.82")
    assert make(machine, "ENVS/machine-serve")[0] == 0


@pytest.mark.parametrize("smi", ["", "echo 'No devices were found'; exit 6\n", "exit 1\n"])
def test_a_node_without_a_gpu(machine: Path, smi: str) -> None:
    """It gets the build for CPUs, is told of it, and can ask for the other one."""
    if smi:
        script(machine / "nvidia-smi", smi)
    code, output, _ = make(machine, "ENVS/machine-serve-cpu")
    assert code == 0
    assert "no GPU is seen here" in output
    assert "On a login node of GPU machines: make SERVE=serve envs" in output
    assert "No devices" not in smi or "No devices were found" in output
    code, output, _ = make(machine, "SERVE=serve", "ENVS/machine-serve")
    assert code == 0
    assert "nvidia-smi must show driver 580 or later" in output


def test_a_serve_that_is_none(machine: Path) -> None:
    code, output, fetched = make(machine, "SERVE=gpu", "envs")
    assert code
    assert "SERVE=gpu: is neither serve" in output
    assert not fetched


@pytest.mark.parametrize("version", ["3.12.3", "3.10.14", "3.13.0"])
def test_another_python_only(machine: Path, version: str) -> None:
    """With a shim of pyenv in the place of python3.11."""
    script(machine / "python3.11", "echo 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    parts = ", ".join(version.split("."))
    pretend = (
        f"import sys, runpy; sys.version_info = ({parts}); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script(
        machine / "python3",
        f'[ "$1" = -c ] && exec {PYTHON} "$@"\nexec {PYTHON} -c "{pretend}" "$@"\n',
    )
    code, output, fetched = make(machine, "envs")
    assert code
    assert re.search(rf"Python 3\.11 is needed, and \S+ is {re.escape(version)}\. ", output)
    assert "uv python install 3.11" in output
    assert not fetched


def test_a_python_that_does_not_run(machine: Path) -> None:
    code, output, fetched = make(machine, "PYTHON=/nowhere/python", "envs")
    assert code
    assert "PYTHON=/nowhere/python does not run; Python 3.11 is needed" in output
    assert not fetched


def test_the_driver_is_that_of_the_pins() -> None:
    """Another CUDA in the pins needs another least driver in check_machine.py."""
    for name in PINS:
        assert re.search(r"^cuda-toolkit==13\.0\.", (REPO / name).read_text(), re.MULTILINE), name


# --- pip's settings reach uv ----------------------------------------------------------------------
MIRROR = f"https://me:{SECRET}@mirror.example/simple"


def uv_sees(tmp_path: Path, config: str = "", code: int = 0, **variables: str) -> tuple[Any, str]:
    """The environment that uv gets, and what is printed."""
    folder = tmp_path / "uv/bin"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "python").exists():
        (folder / "python").symlink_to(PYTHON)
    seen = tmp_path / "seen.json"
    dump = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('{seen}', 'w'))"
    script(folder / "uv", f'{PYTHON} -c "{dump}" "$@"\nexit {code}\n')
    (tmp_path / "pip.conf").write_text(config)
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("PIP_", "UV_", "SSL_")) and "PROXY" not in name.upper()
    }
    done = subprocess.run(
        [folder / "python", "requirements/uv_like_pip.py", "pip", "sync", "a b.txt"],
        cwd=REPO,
        env=outside | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    arguments, environment = json.loads(seen.read_text())
    assert arguments == ["pip", "sync", "a b.txt"]
    return environment, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "variables"),
    [
        (f"[global]\nindex-url = {MIRROR}\n", {}),
        (f"[install]\nindex-url = {MIRROR}\n", {}),
        (
            f"[global]\nindex-url = https://other.example/simple\n[install]\nindex-url={MIRROR}\n",
            {},
        ),
        ("", {"PIP_INDEX_URL": MIRROR}),
        ("[install]\nindex-url = https://other.example/simple\n", {"PIP_INDEX_URL": MIRROR}),
        (f"[global]\nindex-url = {MIRROR}\n[download]\nindex-url = https://other.example\n", {}),
    ],
)
def test_pips_mirror_reaches_uv_and_no_password_is_printed(
    tmp_path: Path, config: str, variables: dict[str, str]
) -> None:
    for code in (0, 2):
        environment, printed = uv_sees(tmp_path, config, code, **variables)
        assert environment["UV_DEFAULT_INDEX"] == MIRROR
        assert SECRET not in printed


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_what_uv_is_told_itself_wins(tmp_path: Path, name: str) -> None:
    config = f"[global]\nindex-url = {MIRROR}\n"
    environment, _ = uv_sees(tmp_path, config, **{name: "https://mine.example/simple"})
    assert environment[name] == "https://mine.example/simple"
    assert MIRROR not in environment.values()


def test_hosts_certificate_and_proxy_reach_uv(tmp_path: Path) -> None:
    config = (
        "[global]\ntrusted-host = one.example\n    two.example\ncert = /some/ca.pem\n"
        f"proxy = http://me:{SECRET}@proxy.example:3128\n"
    )
    environment, printed = uv_sees(tmp_path, config)
    assert environment["UV_INSECURE_HOST"] == "one.example two.example"
    assert environment["SSL_CERT_FILE"] == "/some/ca.pem"
    assert environment["ALL_PROXY"] == f"http://me:{SECRET}@proxy.example:3128"
    assert SECRET not in printed
    environment, _ = uv_sees(tmp_path, config, https_proxy="http://mine.example:1")
    assert "ALL_PROXY" not in environment


def test_a_further_index_is_not_handed_on_and_is_named_when_uv_fails(tmp_path: Path) -> None:
    """There may be another build of torch."""
    config = f"[global]\nindex-url = {MIRROR}\nextra-index-url = https://me:{SECRET}@e.example\n"
    environment, printed = uv_sees(tmp_path, config)
    assert (environment["UV_DEFAULT_INDEX"], printed) == (MIRROR, "")
    assert not [value for value in environment.values() if "e.example" in value]
    _, printed = uv_sees(tmp_path, config, code=1)
    assert "pip has an extra-index-url, which uv is not given" in printed
    assert SECRET not in printed


def test_a_broken_configuration_of_pip_does_not_stop_uv(tmp_path: Path) -> None:
    environment, _ = uv_sees(tmp_path, "no section = 1\n")
    assert "UV_DEFAULT_INDEX" not in environment
