"""Inference from start to end: read comparisons, ask the server, judge and save its responses."""

import asyncio
import json
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cot_reward.client import wire
from cot_reward.client.answer_probability import LOGPROBS
from cot_reward.client.fleet import Fleet
from cot_reward.client.flow import Sender, send_requests
from cot_reward.client.processes import ProcessSender
from cot_reward.client.sender import FleetSender
from cot_reward.client.server import ServerError
from cot_reward.client.wire import Outcome, Request, Sampling
from cot_reward.errors import UserError
from cot_reward.inference import fixed_settings, messages, results
from cot_reward.inference.journal import journal_lines
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.media_check import records_with_bad_media
from cot_reward.inference.plan import Run
from cot_reward.inference.results import Results
from cot_reward.inference.rounds import Rounds
from cot_reward.inference.senders import Media, SendingWork, new_roster
from cot_reward.inference.served_model import Acquaintance, check_same_model
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.structured import forced_forms
from cot_reward.media.paths import MediaError
from cot_reward.media.sent import MediaReader
from cot_reward.provenance import jsonable, versions
from cot_reward.records import Verdict
from cot_reward.rows.held_out import exclude_warnings
from cot_reward.store import Journal, write_json

# A run ends early when its first responses have hardly any answer. The first to come are the
# shortest, which may be worse than the others: so a fifth of --min-parsed is enough.
FIRST_RESPONSES, FIRST_RESPONSES_LENIENCE = 200, 0.2

# Opens what sends the requests of a run.
OpenSender = Callable[[], AbstractAsyncContextManager[Sender]]


def _stop_on_signals(stop: asyncio.Event) -> None:
    """SIGINT and SIGTERM set the event; the second signal ends the run at once."""

    def interrupt() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping: waiting for the requests in flight", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)


class _Voice:
    """Lines for the user: beside the bar, once there is one."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)

    def __call__(self, line: str) -> None:
        self.say(line)


class _Progress:
    """The bar on the terminal, with the accuracy of the responses of this start."""

    def __init__(self, total: int, done: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=done, unit="cot", smoothing=0.1, mininterval=1.0)
        self.say = lambda line: self._bar.write(line, file=sys.stderr)
        self._correct = self._judged = self._failed = self._parsed = 0

    def unreadable(self, min_parsed: float) -> bool:
        """Whether far fewer of the first responses than this share have an answer."""
        return (
            self._judged >= FIRST_RESPONSES
            and self._parsed < min_parsed * self._judged * FIRST_RESPONSES_LENIENCE
        )

    def show(self, outcomes: list[Outcome], verdicts: list[Verdict], passed_over: int) -> None:
        """`passed_over`: units that turned out not to be asked."""
        self._judged += len(verdicts)
        self._parsed += sum(bool(verdict.answer) for verdict in verdicts)
        self._correct += sum(verdict.verdict == "correct" for verdict in verdicts)
        self._failed += sum(outcome.request.count for outcome in outcomes if outcome.reason)
        accuracy = f"{self._correct / max(1, self._judged):.3f}"
        self._bar.set_postfix(accuracy=accuracy, failed=self._failed, refresh=False)
        self._bar.update(sum(outcome.request.count for outcome in outcomes) + passed_over)

    def close(self) -> None:
        self._bar.close()


@dataclass(frozen=True)
class _Asking:
    """How the asking went.

    server_gone: why the server was given up, "" if it was not
    unreadable: the run was stopped since its first responses had hardly any answer
    """

    interrupted: bool
    server_gone: str
    unreadable: bool
    metrics: dict[str, Any]


async def _ask(
    run: Run,
    journal: Journal,
    open_sender: OpenSender,
    stop: asyncio.Event,
    voice: _Voice,
    run_hash: str,
) -> _Asking:
    """Ask for everything that is missing. A response counts once it is on disk."""
    settings = run.settings
    _stop_on_signals(stop)
    judged_before, failed_before = run.progress()
    tokens_before, answered = run.counts["completion_tokens"], 0
    progress = _Progress(
        run.expected_units - run.bad_units,
        judged_before + (0 if settings.retry_failed else failed_before),
    )
    voice.say = progress.say
    rounds, passed_over = Rounds(run), 0
    began, unreadable = time.monotonic(), False
    try:
        async with (
            open_sender() as sender,
            aclosing(send_requests(rounds, sender)) as batches,
        ):
            began = time.monotonic()
            async for batch in batches:
                lines = [
                    line
                    for outcome in batch
                    for line in journal_lines(outcome, run_hash, run.template_hashes)
                ]
                # One write for the batch, in a thread: a disk takes its time.
                offsets = await asyncio.to_thread(journal.append, lines)
                entered = [
                    (run.enter(line, offset), line)
                    for line, offset in zip(lines, offsets, strict=True)
                ]
                rounds.answered(batch)
                answered += sum(bool(outcome.responses) for outcome in batch)
                # Later samples were asked because the first ones were not enough.
                verdicts = [
                    verdict
                    for verdict, line in entered
                    if verdict and line["sample"] < run.rule.first
                ]
                progress.show(batch, verdicts, run.passed_over - passed_over)
                passed_over = run.passed_over
                if progress.unreadable(settings.min_parsed) and not stop.is_set():
                    unreadable = True
                    stop.set()
        sent = sender.summary()
    except OSError as error:
        raise UserError(
            f"{error.filename or journal.path}: cannot be written: {error.strerror}; "
            "everything before is kept, the same command continues"
        ) from None
    finally:
        progress.close()
        # Nothing is in flight any more: from here on an interrupt ends the run at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
    seconds = max(1e-9, time.monotonic() - began - sent["paused_seconds"])
    responses = run.progress()[0] - judged_before
    tokens = run.counts["completion_tokens"] - tokens_before
    metrics = {
        **sent,
        "asking_seconds": round(seconds, 2),
        "requests_per_second": round(answered / seconds, 2),
        "responses_per_second": round(responses / seconds, 2),
        "completion_tokens_per_second": round(tokens / seconds, 1),
    }
    return _Asking(stop.is_set() and not unreadable, sender.gone, unreadable, metrics)


def _sampling(settings: InferenceSettings, model: str) -> Sampling:
    extra = dict(wire.NEUTRAL_SAMPLING) if settings.sampling_defaults == "neutral" else {}
    if settings.template_kwargs:
        extra["chat_template_kwargs"] = settings.template_kwargs
    if settings.answer_probability:
        extra |= LOGPROBS
    return Sampling(
        model, settings.temperature, settings.top_p, settings.max_tokens,
        settings.timeout, settings.deadline, settings.max_attempts, extra,
    )  # fmt: skip


def _resume(
    run: Run, model: str | None, served: dict[str, Any] | None = None, judging: bool = True
) -> dict[str, Any]:
    """Take in the folder's journal; the settings of this start in full. Raises UserError.

    `model` None: no server was asked, and the model is that of the last start.
    """
    out = run.settings.out
    previous = fixed_settings.previous_settings(out / "settings.json")
    current = jsonable(asdict(run.settings)) | {
        "model": model or previous.get("model"), "templates": run.template_hashes,
        "served_model": served or previous.get("served_model"),
    }  # fmt: skip
    if served and not run.settings.any_weights:
        check_same_model(out, previous.get("served_model") or {}, served)
    resolved = fixed_settings.continued_settings(out / "settings.json", previous, current)
    run.resume(
        out / "journal.jsonl",
        fixed_settings.run_hash(resolved),
        resolved["templates"].values(),
        judging,
    )
    return resolved


def _check_bad_records(run: Run, bad_media: Sequence[Mapping[str, str]] = ()) -> None:
    """Raises UserError when too many records are bad for a run.

    `bad_media`: records with an image of no use; each stands for a comparison, which judged rows
    name many times.
    """
    bad, records = run.ledger.bad_count, run.ledger.record_count
    most = run.settings.max_bad_rows
    if bad / records + len(bad_media) / len(run.ledger) > most:
        first = next(chain(run.ledger.bad(), bad_media))
        media = (
            f", and {len(bad_media)} of {len(run.ledger)} comparisons have an image of no use"
            if bad_media
            else ""
        )
        raise UserError(
            f"{bad} of {records} records are bad{media}, more than --max-bad-rows {most:g}; "
            f"nothing was asked. The first: {first['where']}: {first['detail']}"
        )


async def _run(settings: InferenceSettings, api_key: str) -> int:
    started = time.monotonic()
    stop, voice = asyncio.Event(), _Voice()
    fleet = Fleet(stop)
    async with new_roster(settings, api_key, fleet, stop, voice) as roster:
        model = await roster.find_model(settings.model)
        with (
            Journal(settings.out / "journal.jsonl") as journal,
            Ledger(settings.out / ".ledger.sqlite") as ledger,
        ):
            # Half-written files of a start that was killed.
            for leftover in settings.out.glob(".*.json*.*"):
                leftover.unlink()
            run = Run(settings, ledger)
            _check_bad_records(run)
            _warn_of_held_out(run)
            if settings.structured_output != "off":
                # A prompt of other JSON is told before any server is asked.
                forced_forms(settings.form, run.templates)
            known = Acquaintance(
                _sampling(settings, model), run.templates, settings.any_weights,
                settings.media_root if settings.media == "file" else None,
                settings.form if settings.structured_output != "off" else None,
            )  # fmt: skip
            await roster.join(known.meet)
            resolved = _resume(run, model, known.served)
            write_json(settings.out / "settings.json", resolved)
            # A summary says that the folder is complete, which it is not until this run ends.
            (settings.out / "summary.json").unlink(missing_ok=True)
            if run.held_out_entries:
                _take_held_out_rows_away(run, journal.path)
            media = Media.of(settings, run.roots)

            @asynccontextmanager
            async def open_sender() -> AsyncGenerator[Sender, None]:
                if settings.processes == 1:
                    with media.reader() as read_url, FleetSender(fleet, read_url) as sender:
                        yield sender
                    return
                work = SendingWork(settings, api_key, known, media)
                async with ProcessSender(settings.processes, work, stop, voice) as processes:
                    yield processes

            run_hash = fixed_settings.run_hash(resolved)
            asking = await _ask(run, journal, open_sender, stop, voice, run_hash)
            return _finish(run, journal.path, resolved, asking, started)


def _warn_of_held_out(run: Run) -> None:
    if run.held_out is not None:
        for line in exclude_warnings(run.held_out.met, run.held_out.doubts, "the data"):
            print(line, file=sys.stderr)


def _take_held_out_rows_away(run: Run, journal: Path) -> None:
    """Write the files anew before anything is asked: rows of an earlier start are held out now.

    This start may be stopped before its end, and the files of the earlier one would stay.
    """
    _derive(run, journal)
    print(
        f"{run.held_out_entries} responses of earlier starts are about comparisons that are held "
        f"out now (--exclude): they stay in {journal}, and are in no other file",
        file=sys.stderr,
    )


def _derive(run: Run, journal: Path) -> Results:
    settings = run.settings
    return results.derive(
        settings.out, run.ledger, journal, run.templates, settings.form, settings.asked_orders,
        run.rule, settings.allow_incoherent, settings.answer_probability,
    )  # fmt: skip


def _finish(
    run: Run, journal: Path, resolved: dict[str, Any], asking: _Asking, started: float
) -> int:
    """Derive the files from the journal, check the account, write the summary last.

    Returns the exit code.
    """
    settings = run.settings
    found = _derive(run, journal)
    summary = _summary(run, found, resolved, asking, started)
    account = summary["account"]
    messages.print_summary(summary, settings.out)
    if asking.interrupted:
        print("stopped early; the same command continues", file=sys.stderr)
        return 130
    if asking.server_gone:
        print(
            f"error: the server was out for more than {settings.max_pause:.0f} s "
            f"({asking.server_gone}); everything before is kept, the same command continues",
            file=sys.stderr,
        )
        return 1
    problems = messages.problems(summary, settings)
    if asking.unreadable:
        return _tell(problems, "stopped early; with --min-parsed 0 the same command continues")
    if account["not_asked"]:
        print(f"error: the account does not hold: {account}", file=sys.stderr)
        return 1
    write_json(settings.out / "summary.json", summary)
    if not found.judged:
        print(f"error: nothing succeeded; see {settings.out / 'failed.jsonl'}", file=sys.stderr)
        return 1
    messages.warn_of_repeats(summary, settings)
    return _tell(problems, "the files are written; look at them") if problems else 0


def _tell(problems: list[str], then: str) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(then, file=sys.stderr)
    return 3


def _summary(
    run: Run, found: Results, resolved: dict[str, Any], asking: _Asking, started: float
) -> dict[str, Any]:
    first_duplicates = [row["where"] for row in islice(run.ledger.duplicates(), 20)]
    return {
        "stage": "inference",
        "account": {
            "expected": run.expected_units + run.excluded_units,
            "judged": found.judged,
            "failed": found.failed_units,
            **({"excluded": run.excluded_units} if run.held_out else {}),
            "not_asked": run.expected_units - found.judged - found.failed_units - found.settled,
            **({"settled": found.settled} if run.rule.sides else {}),
        },
        **_held_out_counts(run),
        **({"metrics_of": messages.metrics_of(run.rule.first)} if run.rule.sides else {}),
        "files": {name: found.rows[name] for name in results.JUDGED_FILES},
        "failed_reasons": dict(found.reasons),
        "ties": run.ledger.tie_count,
        "duplicates": {"count": run.ledger.duplicate_count, "first": first_duplicates},
        **found.metrics,
        "usable_pairs": found.usable_pairs(),
        "unparsed_ends": dict(found.unparsed_ends.most_common(3)),
        "restored": dict(found.restored),
        **{name: run.counts[name] for name in ("prompt_tokens", "completion_tokens", "retries")},
        **asking.metrics,
        "seconds": round(time.monotonic() - started, 2),
        "template_hashes": resolved["templates"],
        "settings": resolved,
        "command": sys.argv,
        "versions": versions("openai", "aiohttp", "pillow"),
    }


def _held_out_counts(run: Run) -> dict[str, dict[str, int]]:
    """By held-out file: comparisons of the data that are left out, and those of its pictures."""
    if run.held_out is None:
        return {}
    met = run.held_out.met
    return {
        "excluded_comparisons": {name: found.comparisons for name, found in met.items()},
        "same_pictures_as_excluded": {name: found.of_same_pictures for name, found in met.items()},
    }


def _dry_run(settings: InferenceSettings) -> int:
    """Open the images, print the counts, the bad records and the first request without its bytes.

    Sends and writes nothing. Returns the exit code that a run would have; raises UserError.
    """
    with Ledger(None) as ledger:
        run = Run(settings, ledger)
        _warn_of_held_out(run)
        bad_media = list(records_with_bad_media(ledger, run.roots, settings.image_max_pixels))
        reasons = messages.tell_bad_records(chain(ledger.bad(), bad_media))
        will_fail = run.bad_units + len(bad_media) * settings.units_per_record
        journal, last_settings = settings.out / "journal.jsonl", settings.out / "settings.json"
        if journal.exists() and last_settings.exists():
            _resume(run, settings.model, judging=False)
        judged, failed = run.progress()
        units = requests = 0
        first = None
        for request in filter(None, run.requests()):
            first = first or request
            units, requests = units + request.count, requests + 1
        print(json.dumps({
            "records": ledger.record_count, "bad_records": reasons.total(),
            "bad_record_reasons": dict(reasons), "ties": ledger.tie_count,
            "duplicates": ledger.duplicate_count,
            "comparisons": len(ledger), **_held_out_counts(run),
            "unit": "expected to will_fail are responses: samples of a comparison in an order",
            "expected": run.expected_units + run.excluded_units, "judged": judged,
            "failed": failed, **({"excluded": run.excluded_units} if run.held_out else {}),
            "to_ask": units,
            **({"to_ask_at_most": run.most_units(judged, failed)} if run.rule.sides else {}),
            "will_fail": will_fail,
            "requests": requests, "template_hashes": run.template_hashes,
        }, indent=2))  # fmt: skip
        if first is not None:
            print(json.dumps(_readable_body(run, first), indent=2, ensure_ascii=False))
        _check_bad_records(run, bad_media)
        if will_fail > settings.max_failed * run.expected_units:
            print(
                f"error: {will_fail} of {run.expected_units} responses would fail, more than "
                f"--max-failed {settings.max_failed:g}",
                file=sys.stderr,
            )
            return 3
        return 0


def _readable_body(run: Run, request: Request) -> Any:
    """The body of a request, with the size of each image, or its error, in place of its bytes."""
    settings = run.settings
    reader = MediaReader(settings.image_max_pixels, cache_dir=None)
    urls = []
    for path in request.media:
        try:
            file = run.roots.file(path)
            _, data, mime = reader.read(file)
            url = f"data:{mime};base64,({len(data):,} bytes of {path})"
        except MediaError as error:
            url = f"({error})"
        urls.append([json.dumps(url).encode()])
    sampling = _sampling(settings, settings.model or "(the one that the server lists)")
    if settings.structured_output != "off":
        # Whether the chat template opens <think> is found out when the server is asked.
        sampling = replace(sampling, by_task=forced_forms(settings.form, run.templates))
    content = wire.content(request.prompt, urls)
    task = request.comparison.task
    return json.loads(wire.body(content, sampling, request.count, request.seed, task=task))


def infer(settings: InferenceSettings, api_key: str) -> int:
    """Run inference, or print what it would ask; returns the exit code. Raises UserError."""
    try:
        return _dry_run(settings) if settings.dry_run else asyncio.run(_run(settings, api_key))
    except ServerError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or settings.out}: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise UserError(f"{settings.out / '.ledger.sqlite'}: cannot be written: {error}") from None
