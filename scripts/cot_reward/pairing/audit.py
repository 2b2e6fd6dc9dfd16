"""The audit: what a file of DPO rows teaches, ours or another project's. It changes nothing."""

import json
import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cot_reward.judge import FINDINGS, judge
from cot_reward.pairing import shortcut
from cot_reward.pairing.settings import AuditSettings
from cot_reward.records import PLACEHOLDERS, Task, valid_unicode
from cot_reward.rows.preferences import PairReader
from cot_reward.rows.reading import read_rows
from cot_reward.rows.responses import digest
from cot_reward.rows.validation import check_pair_row, form_of, is_key
from cot_reward.tasks import TASKS

# Pairs of a large file that the classifiers see, drawn evenly.
MAX_CLASSIFIED_PAIRS = 20_000
_SIDES = ("chosen", "rejected")
_MAX_BAD_ROWS_SHOWN = 5


@dataclass
class Audit:
    """Counts over the rows of a file.

    `bad` says of the first bad rows why they are no pairs. `sampled` is the number of pairs that
    the shortcut classifiers saw.
    """

    rows: int = 0
    bad_rows: int = 0
    findings: dict[str, Counter[str]] = field(
        default_factory=lambda: {side: Counter() for side in _SIDES}
    )
    answers: Counter[int] = field(default_factory=Counter)
    chosen_longer: int = 0
    duplicates: int = 0
    same_model: int = 0
    shortcut: dict[str, float | None] = field(default_factory=dict)
    sampled: int = 0
    bad: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        names = (*FINDINGS, "unparsed", "truncated", "mismatch")
        return {
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            **{side: {name: self.findings[side][name] for name in names} for side in _SIDES},
            "chosen_answer": {"1": self.answers[1], "2": self.answers[2]},
            "chosen_longer": self.chosen_longer,
            "duplicates": self.duplicates,
            "same_model": self.same_model,
            "shortcut": self.shortcut,
        }


def _task(row: Mapping[str, Any], texts: Mapping[str, str]) -> Task:
    """The named task, or the one whose answers the texts give; images by default."""
    known = TASKS.get(str(row.get("task", "")))
    if known:
        return known
    for task in TASKS.values():
        if any(answer in text for answer in task.answers for text in texts.values()):
            return task
    return TASKS["image_generation"]


def audit(path: Path, seed: int = 0, sample: int = MAX_CLASSIFIED_PAIRS) -> Audit:
    """The audit of a JSON, JSONL or Parquet file of pairs, of any form of `rows.preferences`.

    The classifiers see at most `sample` pairs. Raises UserError when the file cannot be read.
    """
    found = Audit()
    seen: set[bytes] = set()
    pairs: list[shortcut.Texts] = []
    rng = random.Random(seed)
    as_pair = PairReader()
    for number, row in read_rows(path):
        found.rows += 1
        try:
            if isinstance(row, ValueError):
                raise row
            pair = _count(as_pair(number, row), found, seen)
        # RecursionError: a value is nested too deeply.
        except (ValueError, RecursionError) as error:
            found.bad_rows += 1
            if len(found.bad) < _MAX_BAD_ROWS_SHOWN:
                found.bad.append(f"{path}:{number}: {error}")
            continue
        # Reservoir sampling: every pair has the same chance, and only `sample` are held.
        if len(pairs) < sample:
            pairs.append(pair)
        elif (place := rng.randrange(found.rows - found.bad_rows)) < sample:
            pairs[place] = pair
    found.shortcut = shortcut.accuracies(pairs, seed)
    found.sampled = len(pairs)
    return found


def _count(row: Mapping[str, Any], found: Audit, seen: set[bytes]) -> shortcut.Texts:
    check_pair_row(row, for_training=False)
    texts = {side: row[side] for side in _SIDES}
    prompt = [row.get("system") or "", row.get("history") or [], row["problem"]]
    shown = [row.get(name) or [] for name in PLACEHOLDERS]
    # All that could fail comes before the first count.
    content = blake2b(json.dumps([prompt, shown, texts]).encode(), digest_size=16).digest()
    key = row.get("id")
    if not is_key(key) or "order" not in row:
        # Both orders of a comparison are one. Short: all keys take the room of the longest.
        key = str(digest(prompt, *(sorted(map(json.dumps, media)) for media in shown)))
    task = _task(row, texts)
    models = [str(row.get(f"{side}_model") or "") for side in _SIDES]
    answers = []
    for side in _SIDES:
        reason = str(row.get(f"{side}_finish_reason") or "")
        verdict = judge(texts[side], task, 1, reason, form_of(row))
        formed = verdict.verdict in ("correct", "incorrect")
        found.findings[side][verdict.coherence if formed else verdict.verdict] += 1
        found.findings[side]["mismatch"] += verdict.mismatch
        answers.append(verdict.answer)
    found.answers[answers[0]] += 1
    found.chosen_longer += len(texts["chosen"]) > len(texts["rejected"])
    found.same_model += bool(models[0]) and models[0] == models[1]
    found.duplicates += content in seen
    seen.add(content)
    return shortcut.Texts(str(key), texts["chosen"], texts["rejected"], answers[0], answers[1])


def print_audit(settings: AuditSettings) -> int:
    """Print the audit of each file, as a table or as a line of JSON; returns the exit code.

    It is 1 when a file has no pair at all.
    """
    code = 0
    for path in settings.files:
        found = audit(path, settings.seed)
        name = valid_unicode(str(path))
        print(json.dumps(found.to_json()) if settings.json else _table(found, name))
        if found.rows == found.bad_rows:
            first = valid_unicode(found.bad[0])
            print(
                f"error: {name}: none of its {found.rows:,} rows is a pair: {first}; is it a file "
                "of pairs? dataset/README.md has the forms that are read",
                file=sys.stderr,
            )
            code = 1
    return code


def _table(found: Audit, path: str) -> str:
    good = found.rows - found.bad_rows

    def count_and_share(count: int) -> str:
        return f"{count:>9,}  {count / good:6.1%}" if good else f"{count:>9,}"

    lines = [f"{path}: {found.rows:,} rows, {found.bad_rows:,} of them no pairs"]
    lines += [f"  {valid_unicode(line)}" for line in found.bad]
    columns = found.to_json()
    lines.append(f"{'':24}{'chosen':>17}{'rejected':>19}")
    for name in columns["chosen"]:
        both = "  ".join(count_and_share(columns[side][name]) for side in _SIDES)
        lines.append(f"  {name:22}{both}")
    for name, count in (
        ("chosen answer 1", found.answers[1]),
        ("chosen answer 2", found.answers[2]),
        ("chosen is longer", found.chosen_longer),
        ("duplicates", found.duplicates),
        ("both of one model", found.same_model),
    ):
        lines.append(f"  {name:22}{count_and_share(count)}")
    lines.append(
        f"Telling chosen from rejected without an image (0.5 is chance; {found.sampled:,} pairs):"
    )
    for name, accuracy in found.shortcut.items():
        value = "too few comparisons" if accuracy is None else f"{accuracy:.3f}"
        lines.append(f"  {name:22}{value:>9}")
    if warning := shortcut.warning(found.shortcut, path):
        lines.append(warning)
    return "\n".join(lines)
