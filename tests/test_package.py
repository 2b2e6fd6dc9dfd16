"""The wheel of the project: what is in it, and that its commands run outside of a checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from cot_reward.cli import COMMANDS
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import read_lines

pytest.importorskip("hatchling", reason="the dev environment is older than requirements/dev.txt")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the contents of the wheel, as pip would lay them out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def cot_reward(site, *arguments, cwd):
    command = [sys.executable, "-m", "cot_reward.cli", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment | {"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_every_file_of_the_package_is_in_it(installed):
    package = REPO / "scripts" / "cot_reward"
    tracked = subprocess.run(
        ["git", "ls-files", str(package), "configs"], cwd=REPO, capture_output=True, text=True,
        check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(tracked) > 200
    for name in tracked:
        inside = (
            name.removeprefix("scripts/") if name.startswith("scripts/") else f"cot_reward/{name}"
        )
        assert (installed / inside).read_bytes() == (REPO / name).read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(installed, name, tmp_path):
    found = cot_reward(installed, name, "--help", cwd=tmp_path)
    if (REPO / "scripts" / COMMANDS[name][0]).exists():
        assert (found.returncode, found.stderr) == (0, "")
        assert f"cot-reward {name}" in found.stdout
    else:
        assert found.returncode == 2


def test_the_shipped_settings_are_read(installed, tmp_path):
    # configs/merge.yaml names files of a chain, which this folder does not have.
    found = cot_reward(installed, "merge", cwd=tmp_path)
    assert found.returncode == 2
    assert "runs/stage" in found.stderr


def test_scoring_outside_of_a_checkout(installed, tmp_path, server):
    server.configure(sees=True)
    for light in (20, 200):
        picture(tmp_path / "images" / "a" / f"{light}.png", (light,) * 3)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "a cat"}\n')
    found = cot_reward(
        installed, "score", "--data", "prompts.jsonl", "--candidates", "images", "--out", "out",
        "--base-url", server.url, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert read_lines(tmp_path / "out" / "best.jsonl")[0]["name"] == "a/200.png"
