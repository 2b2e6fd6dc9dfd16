"""What summaries say of settings and versions."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

from cot_reward.provenance import jsonable, versions


def test_settings_become_what_json_can_hold():
    value = {"a": Path("x/y"), "b": [Path("z"), 1, None], "c": {"d": Path("e")}}
    assert jsonable(value) == {"a": "x/y", "b": ["z", 1, None], "c": {"d": "e"}}
    assert json.loads(json.dumps(jsonable(value))) == jsonable(value)


def test_versions_are_of_python_and_of_the_packages_that_are_installed():
    assert versions("pytest", "no-package-of-this-name") == {
        "python": platform.python_version(),
        "pytest": version("pytest"),
    }
