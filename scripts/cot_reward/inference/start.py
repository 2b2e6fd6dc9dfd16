"""The start of a run: how it samples, what its folder holds, which records are of no use."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from cot_reward.client.answer_probability import LOGPROBS
from cot_reward.client.options import further_fields
from cot_reward.client.wire import Sampling
from cot_reward.errors import UserError
from cot_reward.inference import fixed_settings
from cot_reward.inference.finish import derive_files
from cot_reward.inference.plan import Run
from cot_reward.inference.served_model import merged
from cot_reward.inference.settings import InferenceSettings
from cot_reward.provenance import jsonable
from cot_reward.rows.held_out import exclude_warnings


def sampling_of(settings: InferenceSettings, model: str) -> Sampling:
    extra = further_fields(settings.sampling_defaults, settings.template_kwargs)
    if settings.answer_probability:
        extra |= LOGPROBS
    return Sampling(
        model, settings.temperature, settings.top_p, settings.max_tokens,
        settings.timeout, settings.deadline, settings.max_attempts, extra,
    )  # fmt: skip


def kept_model(out: Path) -> dict[str, Any]:
    """The `served_model` of a folder's last start; empty: it says nothing. Raises UserError."""
    found: dict[str, Any] = fixed_settings.previous_settings(out / "settings.json")
    return found.get("served_model") or {}


def resume(
    run: Run, model: str | None, served: dict[str, Any] | None = None, judging: bool = True
) -> dict[str, Any]:
    """Take in the folder's journal; the settings of this start in full. Raises UserError.

    `model` None: no server was asked, and the model is that of the last start. `served`: what tells
    the weights of the servers apart; they were held against the last start's (`Acquaintance`).
    """
    out = run.settings.out
    previous = fixed_settings.previous_settings(out / "settings.json")
    before = previous.get("served_model") or {}
    if served and not run.settings.any_weights:
        # A server that tells less now must not loosen what binds the folder.
        served = merged(before, served)
    current = jsonable(asdict(run.settings)) | {
        "model": model or previous.get("model"), "templates": run.template_hashes,
        "served_model": served or before or None,
    }  # fmt: skip
    resolved = fixed_settings.continued_settings(out / "settings.json", previous, current)
    run.resume(
        out / "journal.jsonl",
        fixed_settings.run_hash(resolved),
        resolved["templates"].values(),
        judging,
    )
    return resolved


def check_bad_records(run: Run, bad_media: Sequence[Mapping[str, str]] = ()) -> None:
    """Raises UserError when too many records are bad for a run.

    `bad_media`: records with an image of no use; each stands for a comparison, which judged rows
    name many times.
    """
    # Of all shares: a small one may have many of the few bad records by chance.
    bad = run.ledger.bad_count + run.ledger.other_bad
    records = run.ledger.record_count + run.ledger.other_records
    most = run.settings.max_bad_rows
    if bad / records + len(bad_media) / max(1, len(run.ledger)) > most:
        first = next(chain(run.ledger.bad(), bad_media), None)
        shown = (
            f"The first: {first['where']}: {first['detail']}" if first else "None is of this share"
        )
        media = (
            f", and {len(bad_media)} of {len(run.ledger)} comparisons have an image of no use"
            if bad_media
            else ""
        )
        raise UserError(
            f"{bad} of {records} records are bad{media}, more than --max-bad-rows {most:g}; "
            f"nothing was asked. {shown}"
        )


def warn_of_held_out(run: Run) -> None:
    if run.held_out is not None:
        for line in exclude_warnings(run.held_out.met, run.held_out.doubts, "the data"):
            print(line, file=sys.stderr)


def take_held_out_rows_away(run: Run, journal: Path) -> None:
    """Write the files anew before anything is asked: rows of an earlier start are held out now.

    This start may be stopped before its end, and the files of the earlier one would stay.
    """
    derive_files(run, journal)
    print(
        f"{run.held_out_entries} responses of earlier starts are about comparisons that are held "
        f"out now (--exclude): they stay in {journal}, and are in no other file",
        file=sys.stderr,
    )
