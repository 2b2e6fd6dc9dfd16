"""The shares of a merge, put together: what one merge would have written."""

import sys
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing import shortcut
from cot_reward.pairing.engine.database import workspace
from cot_reward.pairing.joining.files import check_complete
from cot_reward.pairing.joining.rows import Sample, write_rows
from cot_reward.pairing.joining.shares import Share, read_shares
from cot_reward.pairing.joining.summary import (
    bad_rows,
    check_lists,
    contradictory_labels,
    join_counts,
)
from cot_reward.pairing.laps import Laps
from cot_reward.pairing.listings import LISTS, list_digests, write_list
from cot_reward.pairing.messages import print_summary, prompt_warning
from cot_reward.pairing.output import put_in_place
from cot_reward.pairing.plots import remove_plots
from cot_reward.pairing.settings import JoinSettings
from cot_reward.provenance import jsonable
from cot_reward.rows.held_out import Met, exclude_warnings
from cot_reward.store import write_json
from cot_reward.tasks.prompts import mixed_templates


def join(settings: JoinSettings) -> int:
    """Write train.jsonl, then summary.json; returns the exit code.

    Raises UserError for shares that are not all shares of one merge, and when a file cannot be
    read or written. The files of an earlier merge stay until the new rows are complete.
    """
    for folder in settings.join:
        if folder.resolve() == settings.out.resolve():
            raise UserError(f"--out {settings.out}: is one of the shares; choose another folder")
    shares = read_shares(settings.join)
    check_complete(shares)
    try:
        check_lists(shares)
        with workspace(settings.out) as folder:
            summary = _join(settings, shares, folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or settings.out}: the shares could not be joined: {error.strerror}"
        ) from None
    print_summary(settings.out, summary)
    return 0


def _join(settings: JoinSettings, shares: list[Share], folder: Path) -> dict[str, Any]:
    laps, out, first = Laps(), settings.out, shares[0]
    seed, trained = first.settings["seed"], first.summary["trained_model"]
    counts = join_counts(shares)
    met = {
        name: Met(count, counts["same_pictures_as_excluded"].get(name, 0))
        for name, count in counts["excluded_comparisons"].items()
    }
    for message in (
        *exclude_warnings(met, {}, "the responses"),
        mixed_templates(counts["template_hashes"]),
        prompt_warning({side: counts[side] for side in ("correct_side", "incorrect_side")}),
    ):
        if message:
            print(message, file=sys.stderr)
    sample = Sample(seed)
    digest = write_rows(shares, folder / "train", trained, settings.form, sample)
    texts = sample.texts()
    accuracies = {kind: shortcut.accuracies(of, seed) for kind, of in texts.items()}
    put_in_place(folder, out, ["train"])
    remove_plots(out / "plots")
    summary = {
        "stage": "merge",
        **counts,
        "bad_rows": [
            f"{row['file']}:{row['line']}: {row['reason']}"
            for row in write_list(out / LISTS[0], bad_rows(shares))
        ],
        "contradictory_labels": [
            row["id"] for row in write_list(out / LISTS[1], contradictory_labels(shares))
        ],
        "sha256": {"train.jsonl": digest} | list_digests(out),
        "held_out_files": first.summary["held_out_files"],
        "eval": {},
        "eval_comparisons_shared_with_train": None,
        "trained_model": trained,
        "shortcut": accuracies.pop(""),
        "shortcut_by_kind": accuracies,
        "shortcut_pairs": len(texts[""]),
        "judge_version": first.summary["judge_version"],
        "versions": first.summary["versions"],
        "settings": {**first.settings, "shard": None, **_own_settings(settings, shares)},
        "command": sys.argv,
        "shares": [
            {
                "shard": str(share.shard),
                "folder": str(share.folder),
                "pairs": share.summary["pairs"],
                "seconds": share.summary["seconds"],
            }
            for share in shares
        ],
        "seconds": laps.total(),
    }
    write_json(out / "summary.json", summary)
    return summary


def _own_settings(settings: JoinSettings, shares: list[Share]) -> dict[str, Any]:
    """The settings in which the shares may differ, of all of them together."""
    named = {
        side: list(dict.fromkeys(name for share in shares for name in share.settings[side]))
        for side in ("correct", "incorrect")
    }
    return {**named, "out": jsonable(settings.out), "form": settings.form, "plots": False}
