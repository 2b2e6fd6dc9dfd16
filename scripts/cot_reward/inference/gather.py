"""Join the folders of all shares of a run: the folder that one run without shares would have left.

The journals are taken together, and the files are derived from them as a run does. So the account
shows whether every unit is there, and the files stand in the order of the input.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_reward.client.fleet import merged_summary
from cot_reward.errors import UserError
from cot_reward.inference import fixed_settings
from cot_reward.inference.finish import Asking, finish
from cot_reward.inference.journal import check_line
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.plan import Run
from cot_reward.inference.served_model import check_same_model, merged
from cot_reward.inference.settings import InferenceSettings
from cot_reward.rows.shards import Shard
from cot_reward.settings import from_mapping, setting
from cot_reward.store import (
    Journal,
    atomic_file,
    journal_entries,
    read_json,
    remove_leftovers,
    write_json,
)

# Settings that decide how a share was asked, and not what it holds.
OF_ONE_RUN = (
    "out", "shard", "base_url", "servers", "processes", "api_key_env", "concurrency", "media",
    "timeout", "deadline", "max_attempts", "max_pause", "retry_failed", "any_weights", "dry_run",
    "served_model", "templates",
)  # fmt: skip
# What the shares did a second.
_RATES = ("requests_per_second", "responses_per_second", "completion_tokens_per_second")


@dataclass(frozen=True)
class GatherSettings:
    shares: list[Path] = setting(
        "folders of all shares (--shard 1/N to N/N), each finished", [], positional=True
    )
    out: Path = setting("folder for the whole run", Path("runs/gathered"))

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError("name the folders of the shares")


@dataclass(frozen=True)
class _Share:
    folder: Path
    shard: Shard
    settings: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "_Share":
        """Raises UserError for a folder that is no finished share."""
        summary = read_json(folder / "summary.json")
        settings = summary.get("settings")
        if not isinstance(settings, dict):
            raise UserError(
                f"{folder}: no summary.json, so its inference is not finished; the same command "
                "continues it"
            )
        if not settings.get("shard"):
            raise UserError(f"{folder}: no share; it was asked without --shard")
        try:
            shard = Shard.parse(settings["shard"])
            dict[str, str](settings["templates"])
            merged_summary([summary])
            _ = [summary[name] + 0.0 for name in ("asking_seconds", *_RATES)]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(
                f"{folder / 'summary.json'}: not what the client writes ({error!r:.100}); remove "
                "it, and the command of this share writes it again"
            ) from None
        return cls(folder, shard, settings, summary)

    def compared(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name not in OF_ONE_RUN}


def gather(chosen: GatherSettings, at_once: int | None = None) -> int:
    """Write the whole run into `out`; returns the exit code. Raises UserError.

    `at_once`: how many shares were asked at the same time (default: all).
    """
    started = time.monotonic()
    shares = sorted(map(_Share.read, chosen.shares), key=lambda share: share.shard.number)
    served = _check(shares)
    check_out(chosen.out)
    templates: dict[str, str] = {}
    for share in shares:
        templates |= share.settings["templates"]
    first = shares[0].settings
    resolved = first | {
        "out": str(chosen.out), "shard": None, "templates": templates,
        "served_model": served or None,
        "gathered_from": [str(share.folder) for share in shares],
    }  # fmt: skip
    run_hash = fixed_settings.run_hash(resolved)
    settings = replace(
        from_mapping(InferenceSettings, first, f"{shares[0].folder / 'settings.json'}"),
        out=chosen.out, shard=None, retry_failed=False, servers=None,
    )  # fmt: skip
    with Ledger(chosen.out / ".ledger.sqlite") as ledger:
        run = Run(settings, ledger)
        _check_templates(run, templates)
        # Before the journal: a start that is killed has marked the folder as its own.
        write_json(chosen.out / "settings.json", resolved)
        (chosen.out / "summary.json").unlink(missing_ok=True)
        remove_leftovers(chosen.out)
        _join_journals(shares, chosen.out / "journal.jsonl")
        with Journal(chosen.out / "journal.jsonl") as journal:
            run.resume(journal.path, run_hash, templates.values(), judging=True)
            asking = Asking(False, "", False, _how_asked(shares, at_once or len(shares)))
            return finish(run, journal.path, resolved, asking, started)


def _check(shares: Sequence[_Share]) -> dict[str, Any]:
    """Raises UserError unless these are all shares of one run, each once.

    Returns what tells the weights of all of them (`served_model`).
    """
    first = shares[0]
    served: dict[str, Any] = first.settings.get("served_model") or {}
    counts = {share.shard.count for share in shares}
    found = [share.shard.number for share in shares]
    if len(counts) > 1 or found != list(range(1, first.shard.count + 1)):
        named = ", ".join(f"{share.folder} is {share.shard}" for share in shares)
        raise UserError(f"these are not all shares of one run, each once: {named}")
    for share in shares[1:]:
        known, other = first.compared(), share.compared()
        differing = [name for name in known | other if known.get(name) != other.get(name)]
        templates = [
            f"template of {task}"
            for task, template in share.settings["templates"].items()
            if first.settings["templates"].get(task, template) != template
        ]
        if differing or templates:
            name = (differing + templates)[0]
            raise UserError(
                f"{share.folder} was asked with other settings than {first.folder}: {name} is "
                f"{other.get(name)!r:.200} there and {known.get(name)!r:.200} here"
            )
        # With all before it: the first one may have told nothing.
        told = share.settings.get("served_model") or {}
        check_same_model(share.folder, served, told)
        served = merged(told, served)
    return served


def _check_templates(run: Run, asked: Mapping[str, str]) -> None:
    """Raises UserError unless the templates of now are those that the shares were asked with.

    `asked`: task -> hash. The prompts of the rows are rendered from the template files of now.
    """
    for task, now in run.template_hashes.items():
        if asked.get(task, now) != now:
            given = " ".join(run.settings.template)
            named = f"--template {given}" if given else "the project's own prompt"
            raise UserError(
                f"{named}: the template of {task} was changed since the shares were asked "
                f"({asked[task]} then, {now} now), and the rows would have prompts that nobody "
                "sent; restore it, or ask the shares again into other folders"
            )


def check_out(out: Path) -> None:
    """Raises UserError for a folder with the responses of a run that was not gathered."""
    if (out / "journal.jsonl").exists():
        there: Mapping[str, Any] = fixed_settings.previous_settings(out / "settings.json")
        if "gathered_from" not in there:
            raise UserError(f"--out {out} holds a run of its own; choose another folder")


def _join_journals(shares: Sequence[_Share], path: Path) -> None:
    """Raises UserError for an entry that is damaged, or about a comparison of another share."""
    with atomic_file(path) as file:
        for share in shares:
            journal = share.folder / "journal.jsonl"
            if not journal.exists():
                raise UserError(f"{journal}: no such file; bring the whole folder of the share")
            for number, (_, entry) in enumerate(journal_entries(journal), 1):
                try:
                    check_line(entry)
                except ValueError as error:
                    raise UserError(
                        f"{journal}:{number}: no line of the client ({error}); remove that line, "
                        "and the command of this share asks again what is missing"
                    ) from None
                if not share.shard.holds(entry["key"]):
                    raise UserError(
                        f"{journal}: holds a response about {entry['key']}, which is not of share "
                        f"{share.shard}"
                    )
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _how_asked(shares: Sequence[_Share], at_once: int) -> dict[str, Any]:
    """The metrics of the shares as those of one run, in which so many were asked side by side."""
    summaries = [share.summary for share in shares]
    times = [summary["asking_seconds"] for summary in summaries]
    seconds = max(*times, sum(times) / at_once, 1e-9)
    merged = merged_summary(summaries)
    limit = round(merged["concurrency"]["limit"] * min(1.0, at_once / len(shares)))
    return {
        **merged,
        "concurrency": merged["concurrency"] | {"limit": limit},
        "asking_seconds": round(seconds, 2),
        **{
            name: round(
                sum(summary[name] * time for summary, time in zip(summaries, times, strict=True))
                / seconds,
                2,
            )
            for name in _RATES
        },
    }
