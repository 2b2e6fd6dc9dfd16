"""The console command, and what the packages of pyproject.toml are enough for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cot_reward.cli import COMMANDS
from helpers.environments import REPO
from helpers.pictures import picture

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
SHIPPED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Packages of the extras by the names under which they are imported.
MODULES = {"scikit-learn": "sklearn", "prometheus-client": "prometheus_client"}


def cot_reward(*arguments, cwd=REPO, before=""):
    """The command as an installed package runs it."""
    code = f"import sys\n{before}\nfrom cot_reward.cli import console\nconsole()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, env={"PYTHONPATH": str(REPO / "scripts"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def without_extras():
    """Code that lets no package of an extra be imported."""
    own = {re.split(r"[\[<>=]", one)[0] for one in PROJECT["project"]["dependencies"]}
    names = {re.split(r"[\[<>=]", one)[0] for group in EXTRAS.values() for one in group} - own
    blocked = sorted({MODULES.get(name, name) for name in names} | {"scipy", "pandas"})
    return f"sys.modules.update(dict.fromkeys({blocked!r}))"


def test_help_and_unknown_commands():
    shown = cot_reward("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)
    wrong = cot_reward("scor")
    assert wrong.returncode == 2
    assert "Did you mean 'score'?" in wrong.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_its_script(name, tmp_path):
    script = REPO / "scripts" / COMMANDS[name][0]
    if not script.exists():
        assert "checkout" in cot_reward(name).stderr
        return
    found = cot_reward(name, "--help", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    own = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert found.stdout.replace(f"cot-reward {name}", script.name) == own.stdout
    assert SHIPPED[f"scripts/{script.name}"] == f"cot_reward/scripts/{script.name}"


def test_what_is_shipped_is_there():
    assert SHIPPED["configs"] == "cot_reward/configs"
    for source in SHIPPED:
        assert (REPO / source).exists()


def test_the_dependencies_are_enough_for_the_client_and_for_scoring(tmp_path, server):
    server.configure(sees=True)
    files = [str(picture(tmp_path / f"{n}.png", (90 * n, 0, 0))) for n in range(3)]
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "x", "candidates": ["0.png", "1.png", "2.png"]}\n'
    )
    (tmp_path / "raw.json").write_text(
        '[{"prompt": "x", "images": ["0.png", "1.png"], "conversations": ['
        '{"from": "human", "value": "q"}, {"from": "gpt", "value": "Image 1 is better than '
        'Image 2."}]}]'
    )
    block = without_extras()
    scored = cot_reward(
        "score", "--data", "rows.jsonl", "--out", "out", "--base-url", server.url,
        cwd=tmp_path, before=block,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    asked = cot_reward(
        "infer", "--data", "raw.json", "--media-root", ".", "--out", "judged", "--min-parsed", "0",
        "--base-url", server.url, cwd=tmp_path, before=block,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    used = subprocess.run(
        [sys.executable, "-c", f"import sys\n{block}\nfrom cot_reward import RewardModel\n"
         f"with RewardModel({server.url!r}) as model:\n"
         f"    print(model.rank('x', {files!r}).best)"],
        env={"PYTHONPATH": str(REPO / "scripts")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert used.stdout == "2\n", used.stderr


@pytest.mark.parametrize(("name", "extra"), [("merge", "data"), ("dpo", "train")])
def test_a_package_that_is_missing_is_named(name, extra, tmp_path):
    found = cot_reward(name, cwd=tmp_path, before=without_extras())
    assert found.returncode == 2
    assert f"pip install 'cot-reward[{extra}]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_package_stays_light():
    """Every command imports it."""
    code = (
        "import sys, cot_reward; print('cot_reward.reward' in sys.modules); import cot_reward.cli"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(REPO / "scripts")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "False\n"
    with pytest.raises(ImportError):
        from cot_reward import RewardModle  # noqa: F401


def test_an_unknown_name_of_the_package():
    import cot_reward

    assert Path(str(cot_reward.__file__)).parent == REPO / "scripts" / "cot_reward"
    assert cot_reward.Failure("a", "b").reason == "a"
    with pytest.raises(AttributeError):
        _ = cot_reward.nothing
