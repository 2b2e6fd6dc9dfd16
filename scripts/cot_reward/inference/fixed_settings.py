"""The settings of a run that must not change between two starts in the same folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError

# With another value of one of these, a folder would hold two kinds of responses.
FIXED_SETTINGS = ("model", "temperature", "top_p", "max_tokens", "seed", "image_max_pixels")
# Younger settings, with what held before they existed.
_YOUNGER_SETTINGS: dict[str, Any] = {
    "sampling_defaults": "server", "chat_template_kwargs": None, "form": "think",
}  # fmt: skip
# Younger still: part of the hash only where they have another value, so that it stays what it was.
_YOUNGEST_SETTINGS: dict[str, Any] = {"structured_output": "off"}


def run_hash(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the model and the sampling settings."""
    fixed: list[Any] = [settings[name] for name in FIXED_SETTINGS]
    # The hashes of old journals stay what they are.
    younger = {name: settings.get(name, old) for name, old in _YOUNGER_SETTINGS.items()}
    if younger != _YOUNGER_SETTINGS:
        fixed.append(younger)
    youngest = {name: settings.get(name, old) for name, old in _YOUNGEST_SETTINGS.items()}
    if youngest != _YOUNGEST_SETTINGS:
        fixed.append(youngest)
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]


def previous_settings(path: Path) -> dict[str, Any]:
    """The settings.json of the last start in a folder; empty without one. Raises UserError."""
    if not path.exists():
        return {}
    try:
        previous: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return previous | {"templates": dict(previous["templates"])}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path}: not a run's settings; restore or remove it") from None


def continued_settings(
    path: Path, previous: Mapping[str, Any], current: dict[str, Any]
) -> dict[str, Any]:
    """The settings of this start, with the template hashes of all tasks that the folder has.

    `path` is the settings.json that `previous` (empty: a new folder) comes from. "templates" of
    both maps a task to a template hash. Raises UserError when one of `FIXED_SETTINGS`, the
    template of a task, or the share differs.
    """
    if not previous:
        return current
    templates = previous["templates"]
    if previous.get("shard") != current.get("shard"):
        # The responses would be the same, but the folder would be no share any more.
        raise UserError(
            f"{path.parent} holds share {previous.get('shard') or '1/1 (all comparisons)'}, and "
            f"--shard is {current.get('shard') or 'not given'}; use another --out for each share"
        )
    there = _YOUNGER_SETTINGS | _YOUNGEST_SETTINGS | dict(previous)
    here = _YOUNGEST_SETTINGS | current
    differences = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in (*FIXED_SETTINGS, *_YOUNGER_SETTINGS, *_YOUNGEST_SETTINGS)
        if there.get(name) != here.get(name)
    ]
    differences += [
        f"template of {task}: {templates[task]} there, {current_hash} now"
        for task, current_hash in current["templates"].items()
        if templates.get(task, current_hash) != current_hash
    ]
    if differences:
        raise UserError(
            f"{path.parent} holds a run with other settings; use another --out, or the same "
            "settings:\n  " + "\n  ".join(differences)
        )
    # The data of this start may lack a task that the folder has.
    return current | {"templates": templates | current["templates"]}
