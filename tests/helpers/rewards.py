"""The examples of scripts/rewards, loaded by their path as trainers load them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from helpers.environments import REPO


def load_example(name: str) -> ModuleType:
    path = REPO / "scripts/rewards" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def examples() -> list[Path]:
    return sorted((REPO / "scripts/rewards").glob("*.py"))
