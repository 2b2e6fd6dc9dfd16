"""Inference from start to end: read comparisons, ask the server, judge and save its responses."""

import asyncio
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from cot_reward.client.fleet import Fleet
from cot_reward.client.flow import Sender, send_requests
from cot_reward.client.processes import ProcessSender
from cot_reward.client.sender import FleetSender
from cot_reward.client.server import ServerError
from cot_reward.client.wire import Outcome
from cot_reward.errors import UserError
from cot_reward.inference import fixed_settings
from cot_reward.inference.dry_run import dry_run
from cot_reward.inference.finish import Asking, finish
from cot_reward.inference.journal import journal_lines
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.plan import Run
from cot_reward.inference.rounds import Rounds
from cot_reward.inference.senders import Media, SendingWork, new_roster
from cot_reward.inference.served_model import Acquaintance
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.start import (
    check_bad_records,
    kept_model,
    resume,
    sampling_of,
    take_held_out_rows_away,
    warn_of_held_out,
)
from cot_reward.inference.structured import forced_forms
from cot_reward.records import Verdict
from cot_reward.store import Journal, remove_leftovers, write_json

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


async def _ask(
    run: Run,
    journal: Journal,
    open_sender: OpenSender,
    stop: asyncio.Event,
    voice: _Voice,
    run_hash: str,
) -> Asking:
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
    return Asking(stop.is_set() and not unreadable, sender.gone, unreadable, metrics)


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
            remove_leftovers(settings.out)
            run = Run(settings, ledger)
            check_bad_records(run)
            warn_of_held_out(run)
            if settings.structured_output != "off":
                # A prompt of other JSON is told before any server is asked.
                forced_forms(settings.form, run.templates)
            known = Acquaintance(
                sampling_of(settings, model), run.templates, settings.any_weights,
                settings.media_root if settings.media == "file" else None,
                settings.form if settings.structured_output != "off" else None,
                settings.out, kept_model(settings.out),
            )  # fmt: skip
            await roster.join(known.meet)
            resolved = resume(run, model, known.served)
            write_json(settings.out / "settings.json", resolved)
            # A summary says that the folder is complete, which it is not until this run ends.
            (settings.out / "summary.json").unlink(missing_ok=True)
            if run.held_out_entries:
                take_held_out_rows_away(run, journal.path)
            media = Media.of(settings, run.roots)

            @asynccontextmanager
            async def open_sender() -> AsyncGenerator[Sender, None]:
                if settings.processes == 1:
                    with media.reader() as read_url, FleetSender(fleet, read_url) as sender:
                        yield sender
                    return
                # Every process keeps servers of its own; these would tell of each change again.
                await roster.close()
                work = SendingWork(settings, api_key, known, media)
                async with ProcessSender(settings.processes, work, stop, voice) as processes:
                    yield processes

            run_hash = fixed_settings.run_hash(resolved)
            asking = await _ask(run, journal, open_sender, stop, voice, run_hash)
            return finish(run, journal.path, resolved, asking, started)


def infer(settings: InferenceSettings, api_key: str) -> int:
    """Run inference, or print what it would ask; returns the exit code. Raises UserError."""
    try:
        return dry_run(settings) if settings.dry_run else asyncio.run(_run(settings, api_key))
    except ServerError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or settings.out}: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise UserError(f"{settings.out / '.ledger.sqlite'}: cannot be written: {error}") from None
