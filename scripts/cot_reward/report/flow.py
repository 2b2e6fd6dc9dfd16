"""The way of the data through a chain, with counts: raw rows, texts by verdict, pairs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.store import read_json

# What the merger counts of the texts that go into pairs; its other counts are of texts that do not.
_USED = ("used", "used_in_eval")


@dataclass(frozen=True)
class Counted:
    """A step of the way with its counts: `kept` goes on, each of `dropped` does not."""

    title: str
    folder: str
    total: int
    kept: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)


def inference_step(folder: Path) -> Counted:
    """Of the client's summary: texts by verdict, failures by reason."""
    summary = read_json(folder / "summary.json")
    account, files = summary["account"], summary.get("files", {})
    kept = {name: files[name] for name in ("correct", "incorrect") if files.get(name)}
    dropped = {name: count for name, count in (
        ("unusable", files.get("unusable", 0)), *summary.get("failed_reasons", {}).items(),
        *((name, account.get(name, 0)) for name in ("settled", "not_asked", "excluded")),
        ("ties", summary.get("ties", 0)),
    ) if count}  # fmt: skip
    return Counted("inference", folder.name, account["expected"], kept, dropped)


def merge_steps(folder: Path) -> Iterator[Counted]:
    """Of the merger's summary: both sides, and the pairs."""
    summary = read_json(folder / "summary.json")
    for side in ("correct_side", "incorrect_side"):
        counts: Mapping[str, Any] = summary[side]
        kept = {name: counts[name] for name in _USED if counts.get(name)}
        dropped = {
            name: count for name, count in counts.items()
            if count and name not in (*_USED, "rows")
        }  # fmt: skip
        yield Counted(side, folder.name, counts["rows"], kept, dropped)
    kinds = {name: count for name, count in summary["pair_kinds"].items() if count}
    yield Counted("pairs", folder.name, summary["pairs"], kinds)


def chain_steps(run: Path) -> list[Counted]:
    """The steps of one run of the chain (its first seed), in their order, as far as they are."""
    steps: list[Counted] = []
    for name in ("stage1_infer", "stage2_infer"):
        if _has(run / name, "account"):
            steps.append(inference_step(run / name))
    if _has(run / "pairs", "correct_side"):
        steps += merge_steps(run / "pairs")
    return steps


def _has(folder: Path, key: str) -> bool:
    """Whether the summary of a folder is there, and counts what a step needs."""
    path = folder / "summary.json"
    return path.exists() and key in read_json(path)
