"""The merger, top to bottom: files of judged responses in, DPO pairs and their summary out."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from cot_reward import judge
from cot_reward.errors import UserError
from cot_reward.pairing import all_pairs, held_out, shortcut
from cot_reward.pairing.allowed_texts import Admission
from cot_reward.pairing.balance import balance
from cot_reward.pairing.engine.database import Engine, workspace
from cot_reward.pairing.engine.passes import judge_parts, pair_rows
from cot_reward.pairing.engine.scan import parts_of
from cot_reward.pairing.engine.workers import Workers, cores, worker_count
from cot_reward.pairing.excluded_rows import find_pairable_rows, read_pairable_rows, template_hashes
from cot_reward.pairing.inputs import Inputs, find_inputs
from cot_reward.pairing.laps import Laps
from cot_reward.pairing.listings import (
    check_bad_rows,
    list_bad_rows,
    list_contradictory_labels,
    list_digests,
)
from cot_reward.pairing.meeting import count_shared, trained_model, unmet
from cot_reward.pairing.messages import (
    leak_warning,
    no_pair_message,
    print_summary,
    prompt_warning,
    too_many_pairs_note,
)
from cot_reward.pairing.output import sample_texts, write_pairs
from cot_reward.pairing.pairs import Rules
from cot_reward.pairing.plots import draw, remove_plots
from cot_reward.pairing.selection import count_leaks, select_pairs
from cot_reward.pairing.settings import MergeSettings
from cot_reward.pairing.summary import (
    account_for_rows,
    count_contradictory,
    count_first_choices,
    count_presentations,
    pass_rate_histogram,
    summarise_file,
)
from cot_reward.provenance import jsonable, versions
from cot_reward.rows.held_out import exclude_warnings
from cot_reward.store import write_json
from cot_reward.tasks.prompts import mixed_templates

# Each thread of the database needs its share of the memory, and most of the work is not there.
_MAX_DATABASE_THREADS = 4
_PACKAGES = ("duckdb", "pyarrow", "orjson", "rapidfuzz", "scipy", "scikit-learn")


def merge(settings: MergeSettings) -> int:
    """Write train.jsonl and eval.jsonl, then summary.json; returns the exit code.

    Raises UserError. The files of an earlier merge stay until the new rows are complete and safe on
    the disk.
    """
    try:
        str(settings.out.resolve()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--out {settings.out}: the name of the folder is not UTF-8") from None
    # The database takes "?" for the beginning of options, and a backslash for a slash.
    if found := next((sign for sign in "?\\" if sign in str(settings.out.resolve())), ""):
        raise UserError(f"--out {settings.out}: a folder with {found!r} in its path cannot be used")
    inputs = find_inputs(settings)
    try:
        with workspace(settings.out) as folder:
            summary = _merge(settings, inputs, folder)
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        # The database tells of Ctrl-C during a query in this way.
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from None
        raise
    except duckdb.Error as error:
        raise UserError(
            f"{settings.out}: the merge could not be finished: {str(error).splitlines()[0]}; see "
            "that its disk has room for once the input, or change --memory"
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or settings.out}: the merge could not be finished: "
            # An OSError of the database, raised while its rows are read, has a message only.
            f"{error.strerror or str(error).partition(chr(10))[0]}"
        ) from None
    print_summary(settings.out, summary)
    return 0


def _merge(settings: MergeSettings, inputs: Inputs, folder: Path) -> dict[str, Any]:
    laps, out, seed = Laps(), settings.out, settings.seed
    with ExitStack() as stack:
        threads = min(settings.workers or cores(), _MAX_DATABASE_THREADS)
        engine = stack.enter_context(Engine(folder, settings.memory, threads))

        # Held-out comparisons, which no pair may be about.
        excluded = held_out.exclude(engine, inputs.held_out, settings.media_root)

        # First pass: judge every row.
        files = [(path, True) for path in inputs.correct]
        files += [(path, False) for path in inputs.incorrect]
        parts = parts_of(
            files, folder, inputs.prefix, _admission(settings), engine.memory, engine.threads,
            settings.share,
        )  # fmt: skip
        count = worker_count([path for path, _ in files], settings.workers)
        workers = stack.enter_context(Workers(count))
        scanned = judge_parts(parts, workers)
        check_bad_rows(scanned, folder, settings.max_bad_rows)
        laps.end("judging")
        low, high = settings.pass_rate or (0.0, 1.0)
        buckets = max((part.buckets for part in parts), default=1)
        find_pairable_rows(engine, buckets, low, high)
        met = held_out.count_met(engine, inputs.held_out)
        hashes = template_hashes(engine)
        shared = count_shared(engine, scanned)
        messages = [
            *exclude_warnings(met, excluded.doubts, _responses(settings)),
            mixed_templates(hashes),
        ]
        _warn([_ignored(settings), *messages, *unmet(shared)])
        model = trained_model(engine, settings.trained_model, settings.pairs, settings.share)
        trained = model.name
        _warn([model.note])
        laps.end("finding_partners")

        # Second pass: pair the texts of each presentation.
        pairable = read_pairable_rows(engine, buckets)
        limits = _limits(settings)
        if limits and not all_pairs.are_few(engine):
            limits = None
            _warn([too_many_pairs_note(all_pairs.MAX_PAIRS)])
        rules = _rules(settings, trained, limits is not None)
        pair_rows(engine, *pairable, folder, rules, workers)
        laps.end("pairing")

        balancing = _choose_pairs(engine, settings, limits)
        laps.end("choosing")
        account = account_for_rows(engine, scanned)
        _warn([prompt_warning(account)])
        train = summarise_file(engine, "train", trained)
        if not train["pairs"]:
            raise UserError(no_pair_message(engine, account))
        leaks = count_leaks(engine) if settings.eval_fraction else {}
        _warn([leak_warning(leaks, train["comparisons"], settings.eval_fraction)])
        texts = sample_texts(engine, folder, seed)
        accuracies = shortcut.accuracies(texts, seed)
        by_kind = {
            kind: shortcut.accuracies(sample_texts(engine, folder, seed, kind), seed)
            for kind, count in train["pair_kinds"].items()
            if count
        }
        laps.end("checking")

        # Write the files, the summary last.
        splits = ["train", "eval"] if settings.eval_fraction else ["train"]
        digests = write_pairs(engine, folder, out, splits, settings.form)
        laps.end("writing")
        summary = {
            "stage": "merge",
            **account,
            "files": shared,
            "bad_rows": list_bad_rows(scanned, folder, out),
            "contradictory_labels": list_contradictory_labels(engine, scanned, out),
            "sha256": digests | list_digests(out),
            "contradictory_comparisons": count_contradictory(engine),
            "held_out_files": excluded.files,
            "excluded_comparisons": {name: found.comparisons for name, found in met.items()},
            "same_pictures_as_excluded": {
                name: found.of_same_pictures for name, found in met.items()
            },
            "presentations": count_presentations(engine),
            "pass_rates": pass_rate_histogram(engine),
            **train,
            "eval": summarise_file(engine, "eval", trained) if settings.eval_fraction else {},
            "eval_comparisons_shared_with_train": leaks.get("shared_with_train"),
            "pairs_before_balancing": count_first_choices(engine),
            "balancing": balancing,
            "trained_model": trained,
            "right_rows_of_trained_model": model.right_rows,
            "shortcut": accuracies,
            "shortcut_by_kind": by_kind,
            "shortcut_pairs": len(texts),
            "template_hashes": hashes,
            "judge_version": judge.VERSION,
            "versions": versions(*_PACKAGES),
            "settings": jsonable(asdict(settings)),
            "command": sys.argv,
            "seconds": laps.total(),
            "seconds_of": laps.seconds,
        }
        remove_plots(out / "plots")
        if settings.plots:
            draw(engine, out / "plots")
        write_json(out / "summary.json", summary)
    return summary


def _responses(settings: MergeSettings) -> str:
    """What was merged, for messages."""
    return f"the responses of share {settings.shard}" if settings.shard else "the responses"


def _ignored(settings: MergeSettings) -> str:
    """Which settings a merge does not look at; "" for none."""
    if settings.select != "all":
        return ""
    return (
        "note: --select all takes every pair; --pairs-per-comparison, --chosen-uses and "
        "--rejected-uses do not limit it"
    )


def _limits(settings: MergeSettings) -> all_pairs.Limits | None:
    """The limits of a choice among all pairs; None where the first choice is enough."""
    count = settings.pairs_per_comparison
    if not settings.balance_lengths or settings.select == "all" or count == 1:
        return None
    return all_pairs.Limits(count, settings.chosen_uses, settings.rejected_uses)


def _choose_pairs(
    engine: Engine, settings: MergeSettings, limits: all_pairs.Limits | None
) -> dict[str, dict[str, int]]:
    """Decide which pairs are used; how many were exchanged and dropped for what."""
    per_comparison = None if settings.select == "all" else settings.pairs_per_comparison
    select_pairs(
        engine,
        per_comparison,
        settings.eval_fraction,
        settings.seed,
        prefer_one_model=settings.pairs == "prefer-same-model",
        separate_kinds=settings.pairs == "both",
    )
    return balance(
        engine,
        pairs_per_comparison=per_comparison,
        positions=settings.balance_positions,
        lengths=settings.balance_lengths,
        weights=settings.weights(),
        seed=settings.seed,
        published_share=settings.published_share,
        limits=limits,
    )


def _admission(settings: MergeSettings) -> Admission:
    chosen = judge.FINDINGS if settings.allow_incoherent else settings.chosen_coherence
    return Admission(
        frozenset(chosen),
        frozenset(settings.rejected_kinds),
        frozenset(settings.rejected_coherence),
    )


def _rules(settings: MergeSettings, trained: str | None, keep_spare: bool) -> Rules:
    return Rules(
        count=settings.pairs_per_comparison,
        select=settings.select,
        pair_from=settings.pairs,
        trained_model=trained,
        max_similarity=settings.max_similarity,
        seed=settings.seed,
        same_answer="incoherent" in settings.rejected_kinds,
        chosen_uses=settings.chosen_uses,
        rejected_uses=settings.rejected_uses,
        of_each_length=settings.balance_lengths,
        keep_spare=keep_spare,
    )


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        if message:
            print(message, file=sys.stderr)
