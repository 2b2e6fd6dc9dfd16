"""Stage 3's data: read judged rows, pair them, write DPO rows and say what was done."""

import glob
import re
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_reward.judge import FINDINGS, TRUSTED, judge
from cot_reward.pairing import Judged, balance, pairs_of, to_pair
from cot_reward.reading import read_rows
from cot_reward.records import ROW_FIELDS, turns
from cot_reward.settings import UserError, nearest, plain
from cot_reward.sources import adapter_for, prefix_of
from cot_reward.store import write_json, write_jsonl
from cot_reward.tasks import TASKS, mixed_templates


@dataclass(frozen=True)
class MergeSettings:
    correct: list[str] = field(metadata={"help": "files or globs of correct responses"})
    incorrect: list[str] = field(metadata={"help": "files or globs of incorrect responses"})
    out: Path = field(metadata={"help": "folder for train.jsonl and summary.json"})
    exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "held-out files: none of their comparisons may pass, in either order"},
    )
    media_root: Path = field(
        default=Path("dataset"), metadata={"help": "all paths in rows are relative to it"}
    )
    image_root: Path | None = field(
        default=None,
        metadata={"help": "what raw rows' paths in --exclude are relative to (the media root)"},
    )
    pairs_per_comparison: int = field(
        default=1, metadata={"help": "at most, for each presentation order"}
    )
    select: Literal["closest-text", "closest-length", "random"] = field(
        default="closest-text", metadata={"help": "which pairs of a comparison are taken"}
    )
    same_model: Literal["prefer", "require", "off"] = field(
        default="prefer", metadata={"help": "chosen and rejected from one model's samples"}
    )
    allow_incoherent: bool = field(
        default=False, metadata={"help": "chosen texts whose totals speak against their answer"}
    )
    chosen_coherence: list[str] = field(
        default_factory=lambda: list(TRUSTED),
        metadata={"help": "findings that a chosen text may have (--allow-incoherent: any)"},
    )
    rejected_coherence: list[str] = field(
        default_factory=lambda: list(FINDINGS),
        metadata={"help": "findings that a rejected text may have"},
    )
    balance_positions: bool = field(
        default=True, metadata={"help": "as many chosen answers 1 as 2, by source and task"}
    )
    max_bad_rows: float = field(
        default=0.01, metadata={"help": "share of unusable rows above which the merge is an error"}
    )
    seed: int = field(default=0, metadata={"help": "of every random choice"})

    def __post_init__(self) -> None:
        if self.pairs_per_comparison < 1:
            raise ValueError("--pairs-per-comparison must be at least 1")
        for flag, chosen in (
            ("--chosen-coherence", self.chosen_coherence),
            ("--rejected-coherence", self.rejected_coherence),
        ):
            for name in chosen:
                if name not in FINDINGS:
                    raise ValueError(
                        f"{flag}: no finding is called '{name}'.{nearest(name, FINDINGS)}"
                    )


@dataclass
class _Read:
    rows: list[Judged]
    counts: Counter[str]
    bad: list[str]


def _files(patterns: list[str], flag: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        if not found:
            raise UserError(f"{flag} {pattern}: no file matches")
        paths += map(Path, found)
    return list(dict.fromkeys(paths))


def _judged(row: dict[str, Any], side: str, settings: MergeSettings) -> Judged | str:
    """The row as it may be paired, or the reason why it may not. Judged again, never trusted.

    Raises ValueError for a row that is not a stage 2 row.
    """
    for name, kind in ROW_FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"'{name}' must be of type {kind.__name__}, not {row.get(name)!r}")
    if row["task"] not in TASKS:
        raise ValueError(f"unknown task {row['task']!r}")
    if row["label"] not in (1, 2):
        raise ValueError(f"'label' must be 1 or 2, not {row['label']!r}")
    for name in ("images", "videos"):
        if not all(isinstance(path, str) for path in row[name]):
            raise ValueError(f"'{name}' must be a list of paths, not {row[name]!r}")
    if max(len(row["images"]), len(row["videos"])) < 2:
        raise ValueError("the row names fewer than two media of one kind")
    prompt, text = turns(row)
    verdict = judge(text, TASKS[row["task"]], row["label"], row["finish_reason"])
    if verdict.verdict != side:
        return f"judged_{verdict.verdict}"
    if side == "correct":
        if verdict.coherence not in settings.chosen_coherence and not settings.allow_incoherent:
            return f"chosen_{verdict.coherence}"
    elif verdict.coherence not in settings.rejected_coherence:
        return f"rejected_{verdict.coherence}"
    return Judged(
        id=row["id"], order=row["order"], task=row["task"], source=row["source"], prompt=prompt,
        text=text, images=tuple(row["images"]), videos=tuple(row["videos"]),
        answer=verdict.answer, model=row["model"], template_hash=row["template_hash"],
    )  # fmt: skip


def _read(paths: list[Path], side: str, excluded: set[str], settings: MergeSettings) -> _Read:
    read = _Read([], Counter(), [])
    for path in paths:
        # A stage without, say, incorrect responses writes an empty file.
        empty = path.exists() and not path.stat().st_size
        for number, row in () if empty else read_rows(path):
            read.counts["rows"] += 1
            try:
                if isinstance(row, ValueError):
                    raise row
                judged = _judged(row, side, settings)
            except ValueError as error:
                read.counts["bad"] += 1
                read.bad.append(f"{path}:{number}: {error}")
                continue
            if isinstance(judged, str):
                read.counts[judged] += 1
            elif judged.id in excluded:
                read.counts["excluded"] += 1
            else:
                read.rows.append(judged)
    return read


def _excluded(settings: MergeSettings) -> set[str]:
    keys: set[str] = set()
    prefix = prefix_of(settings.image_root or settings.media_root, settings.media_root)
    for path in _files(settings.exclude, "--exclude"):
        for number, row in read_rows(path):
            try:
                if isinstance(row, ValueError):
                    raise row
                # A held-out row that cannot be read could let its comparison through: an error.
                # Raw data may have an "id" of its own, which is no key.
                known = re.fullmatch("[0-9a-f]{64}", str(row.get("id", "")))
                keys.add(known[0] if known else adapter_for(row, None)(row, prefix).key)
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}; --exclude needs whole files") from None
    return keys


def _contradictory(right: list[Judged], wrong: list[Judged]) -> set[str]:
    """Keys whose preferred candidate is not the same in all files."""
    preferred: dict[str, set[str]] = defaultdict(set)
    for rows, is_right in ((right, True), (wrong, False)):
        for judged in rows:
            shown = judged.images or judged.videos
            label = judged.answer if is_right else 3 - judged.answer
            preferred[judged.id].add(shown[label - 1])
    return {key for key, names in preferred.items() if len(names) > 1}


def merge(settings: MergeSettings) -> int:
    """Write `train.jsonl`, then `summary.json`; returns the exit code. Raises UserError."""
    started = time.monotonic()
    summary_path = settings.out / "summary.json"
    summary_path.unlink(missing_ok=True)
    excluded = _excluded(settings)
    right = _read(_files(settings.correct, "--correct"), "correct", excluded, settings)
    wrong = _read(_files(settings.incorrect, "--incorrect"), "incorrect", excluded, settings)
    bad = right.bad + wrong.bad
    total = right.counts["rows"] + wrong.counts["rows"]
    if len(bad) > settings.max_bad_rows * total:
        raise UserError(
            f"{len(bad)} of {total} rows are bad, more than --max-bad-rows "
            f"{settings.max_bad_rows} allows; the first:\n  " + "\n  ".join(bad[:10])
        )
    contradictory = _contradictory(right.rows, wrong.rows)
    hashes: dict[str, set[str]] = defaultdict(set)
    for judged in right.rows + wrong.rows:
        hashes[judged.task].add(judged.template_hash)
    if warning := mixed_templates(hashes):
        print(warning, file=sys.stderr)

    chosen: dict[Any, list[Judged]] = defaultdict(list)
    rejected: dict[Any, list[Judged]] = defaultdict(list)
    for rows, groups in ((right.rows, chosen), (wrong.rows, rejected)):
        for judged in rows:
            if judged.id not in contradictory:
                groups[judged.presentation].append(judged)
    pairs = {
        repr(presentation): pairs_of(
            chosen[presentation], rejected[presentation], settings.pairs_per_comparison,
            settings.select, settings.same_model, settings.seed,
        )
        for presentation in sorted(chosen.keys() & rejected.keys())
    }  # fmt: skip
    before = sum(map(len, pairs.values()))
    dropped: Counter[str] = Counter()
    if settings.balance_positions:
        pairs, dropped = balance(pairs, settings.seed)
    made = [pair for group in pairs.values() for pair in group]
    if not made:
        raise UserError(
            f"no pair: {len(right.rows)} usable correct and {len(wrong.rows)} usable incorrect "
            f"responses share {len(chosen.keys() & rejected.keys())} presentations; "
            f"correct side {dict(right.counts)}, incorrect side {dict(wrong.counts)}"
        )
    train = settings.out / "train.jsonl"
    write_jsonl(train, (to_pair(a, b).to_row() for a, b in made))
    answers = Counter(a.answer for a, _ in made)
    summary = {
        "stage": "merge",
        "correct_side": dict(right.counts) | {"usable": len(right.rows)},
        "incorrect_side": dict(wrong.counts) | {"usable": len(wrong.rows)},
        "bad_rows": bad[:100],
        "contradictory_labels": sorted(contradictory),
        "presentations": {
            "with_chosen": len(chosen), "with_rejected": len(rejected),
            "with_both": len(chosen.keys() & rejected.keys()),
        },
        "pairs": len(made),
        "pairs_before_balancing": before,
        "dropped_by_balancing": dict(dropped),
        "comparisons": len({a.id for a, _ in made}),
        "chosen_answer": {"1": answers[1], "2": answers[2]},
        "chosen_longer": sum(len(a.text) > len(b.text) for a, b in made),
        "same_model": sum(a.model == b.model for a, b in made),
        "template_hashes": {task: sorted(of) for task, of in sorted(hashes.items())},
        "settings": plain(asdict(settings)),
        "command": sys.argv,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    write_json(summary_path, summary)
    print(
        f"{train}: {len(made)} pairs about {summary['comparisons']} comparisons "
        f"({before - len(made)} dropped to balance positions); chosen answer 1: {answers[1]}, "
        f"2: {answers[2]}; same model: {summary['same_model']}; chosen longer: "
        f"{summary['chosen_longer']}; bad rows: {len(bad)}"
    )
    return 0
