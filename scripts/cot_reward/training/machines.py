"""Several machines in one training: what must be the same on all of them, and how to tell."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.media.paths import MediaError, resolve

# Of these a difference changes numbers, or which collective calls the processes make.
_PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "deepspeed", "peft", "datasets", "llamafactory",
    "liger-kernel",
)  # fmt: skip
_DIGEST_SHOWN = 12


def software(environment: Path | None = None) -> dict[str, str]:
    """The project's code and the packages of an environment (default: this one): name -> version.

    The code is told by its digest, since a copy need not be a git repository.
    """
    scripts = Path(__file__).parents[2]
    digest = sha256()
    for path in sorted(scripts.rglob("*.py")):
        digest.update(f"{path.relative_to(scripts)}\n".encode() + path.read_bytes())
    places = None if environment is None else environment.glob("lib/python*/site-packages")
    found = distributions() if places is None else distributions(path=list(map(str, places)))
    versions = {one.name.lower(): one.version for one in found}
    return {"the code in scripts/": digest.hexdigest()[:_DIGEST_SHOWN]} | {
        name: versions.get(name, "not there") for name in _PACKAGES
    }


def media(paths: Iterable[str], root: Path) -> str:
    """A digest of these media by names and sizes. Raises UserError for one that is missing.

    The contents are not read: they may be a hundred thousand pictures on a network's file system.
    """
    digest = sha256()
    for path in sorted(set(paths)):
        try:
            size = resolve(path, root).stat().st_size
        except MediaError as error:
            raise UserError(str(error)) from None
        digest.update(f"{path} {size}\n".encode())
    return digest.hexdigest()[:_DIGEST_SHOWN]


def check_alike(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """`facts`: machine -> what -> value. Raises UserError where the machines differ."""
    (first, expected), *others = facts.items()
    told = []
    for what in dict.fromkeys(name for found in facts.values() for name in found):
        value = expected.get(what, "not there")
        other = {name: found.get(what, "not there") for name, found in others}
        different = [f"{there} on {name}" for name, there in other.items() if there != value]
        if different:
            told.append(f"\n  {what}: {value} on {first}, {', '.join(different)}")
    if told:
        raise UserError(
            f"the machines of this training differ:{''.join(told)}\n"
            "give all of them the same files, packages and settings, or one file system"
        )


def check_faults(faults: Mapping[str, str]) -> None:
    """`faults`: machine -> what is wrong there ("": nothing). Raises UserError where any is."""
    found = {name: fault for name, fault in faults.items() if fault}
    if not found:
        return
    if len(found) == len(faults) and len(set(found.values())) == 1:
        raise UserError(next(iter(found.values())))
    raise UserError("\n".join(f"on {name}: {fault}" for name, fault in found.items()))
