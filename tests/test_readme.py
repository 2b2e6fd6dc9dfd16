"""Every command and path that the READMEs and CONTRIBUTING.md name exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.environments import PYTHON, REPO

READMES = ("README.md", "README.zh-CN.md")
OTHERS = ("CONTRIBUTING.md", "dataset/README.md", "scripts/README.md", "requirements/README.md")
MAX_README_LINES = 165
# What a run writes, or a user brings. Everything else that looks like a path must exist.
WRITTEN = ("runs/", ".envs/", "dataset/")
OURS = ("dataset/README.md", "dataset/sample/", "dataset/dataset_info.json")
PATH = re.compile(
    r"(?<![\w/.-])((?:configs|scripts|dataset|asset|requirements|tests|runs|\.envs)/[\w./*-]*"
    r"|[\w.-]+\.(?:md|txt|toml))"
)


def text_of(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """The indented command lines, continuation lines joined, comments cut."""
    joined = text_of(name).replace("\\\n", " ")
    lines = [line.strip().split("  #")[0].split("   main")[0] for line in joined.splitlines()
             if line.startswith("    ")]  # fmt: skip
    starts = ("python ", "make ", "scripts/", "accelerate ", "llamafactory-cli ", "FORCE_TORCHRUN")
    # The layout has a line about the folder itself.
    return [line for line in lines if line.startswith(starts) and not line.startswith("scripts/ ")]


def repository_files() -> list[str]:
    """The files that git has or would add, without environments and results of runs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (REPO / name).exists()]


@pytest.mark.parametrize("name", [*READMES, *OTHERS])
def test_every_path_exists(name: str) -> None:
    files = repository_files()
    # A bare file name may be that of a file in any folder, or of one that a run writes.
    known = {Path(file).name for file in files} | {"results.md"}
    missing = []
    for path in {found.rstrip(".,") for found in PATH.findall(text_of(name))}:
        if path.startswith(WRITTEN) and not path.startswith(OURS):
            continue
        if not any(REPO.glob(path)) and path not in known:
            missing.append(path)
    assert not missing


@pytest.mark.parametrize("name", READMES)
def test_every_make_target_exists(name: str) -> None:
    makefile = text_of("Makefile")
    targets = re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text_of(name), re.MULTILINE)
    assert {"demo", "test", "envs"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", READMES)
def test_every_flag_of_a_command_is_known(name: str) -> None:
    checked = 0
    helps: dict[str, str] = {}
    for command in commands(name):
        words = shlex.split(command)
        script = next((w for w in words if re.fullmatch(r"scripts/\w+\.py", w)), None)
        if script is None or script == "scripts/DPO_VL.py":
            continue
        # prepare_data.py has commands of its own.
        call = words[words.index(script) :][: 1 + (script == "scripts/prepare_data.py")]
        name_of_help = " ".join(call)
        if name_of_help not in helps:
            shown = subprocess.run(
                [PYTHON, *call, "--help"], cwd=REPO, capture_output=True, text=True, check=True
            )
            helps[name_of_help] = shown.stdout
        for flag in (w for w in words[words.index(script) :] if w.startswith("--")):
            known = helps[name_of_help]
            assert f"{flag} " in known or f"{flag}," in known, (script, flag)
            checked += 1
    assert checked > 5


def test_the_chinese_readme_is_in_step() -> None:
    """The same headings in number and depth, commands, links, pictures, and figures of tables."""

    def shape(name: str) -> dict[str, list]:
        text = text_of(name)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        return {
            "headings": re.findall(r"^#+", text, re.MULTILINE),
            "commands": [" ".join(shlex.split(command)) for command in commands(name)],
            "pictures": re.findall(r"!\[.*?\]\((.*?)\)", text),
            "links": sorted(set(re.findall(r"\]\((\S+?)\)", text)) - set(READMES)),
            "tables": [sorted(re.findall(r"\d[\d.,]*\d|\d|`[^`]+`", row)) for row in rows],
        }

    english, chinese = map(shape, READMES)
    for part, found in english.items():
        assert chinese[part] == found, part
    assert len(english["commands"]) > 12
    assert len(english["headings"]) > 7


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= MAX_README_LINES


def test_the_makefile_has_help_for_its_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=REPO, capture_output=True, text=True, check=True)
    assert {"demo", "test", "lock", "demo-clean"} <= set(shown.stdout.split())


def test_nothing_names_a_path_of_one_machine() -> None:
    for name in repository_files():
        path = REPO / name
        if path.suffix in (".png", ".txt"):
            continue
        content = path.read_text(encoding="utf-8", errors="replace")
        assert not re.search(r"(?<![\w.])/(?:root|home|work)/\w", content), name
