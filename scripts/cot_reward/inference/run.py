"""Stage 2: read comparisons, ask the server for chains of thought, judge and save them."""

import asyncio
import json
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.flow import ReadMedium, sample
from cot_reward.client.outage import Outage
from cot_reward.client.server import AttemptError, Server, ServerError
from cot_reward.client.wire import Outcome, Sampling
from cot_reward.errors import UserError
from cot_reward.inference import results
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.plan import Stage, journal_lines, run_key, run_there, same_run
from cot_reward.inference.settings import InferenceSettings
from cot_reward.judge import judge
from cot_reward.media.paths import MediaError, resolve
from cot_reward.media.sent import MediaReader
from cot_reward.provenance import jsonable, versions
from cot_reward.store import Journal, write_json
from cot_reward.tasks import TASKS


def _file_url(path: Path) -> list[bytes]:
    return [json.dumps(path.resolve().as_uri()).encode()]


def _url_of(settings: InferenceSettings, reader: MediaReader) -> ReadMedium:
    """What turns a path below the media root into the URL that is sent."""
    within = settings.image_root or settings.media_root

    def url(path: str) -> Iterable[bytes]:
        file = resolve(path, settings.media_root, within)
        sent, data, mime = reader.read(file)
        if settings.media == "inline":
            return wire.inline(data, mime)
        assert sent is not None
        return _file_url(sent)

    return url


async def _probe_files(settings: InferenceSettings, server: Server, how: Sampling) -> None:
    """See whether the server reads files below the media root. Raises UserError when not."""
    from PIL import Image

    root = settings.media_root.resolve()
    probe = root / ".cache" / "media" / "probe.png"
    probe.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56)).save(probe)
    content = wire.content("<image>Say yes.", "<image>", [_file_url(probe)])
    try:
        await server.complete(wire.body(content, how, count=1, seed=0, max_tokens=1), how.timeout)
    except AttemptError as fault:
        raise UserError(
            f"--media file: the server does not read {probe.as_uri()} ({fault.detail}); start it "
            f"on a machine that has these files with --allowed-local-media-path {root}, or use "
            "--media inline"
        ) from None


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def interrupt() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping: waiting for the requests in flight", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    return stop


class _Progress:
    """The bar on the terminal, with the accuracy so far."""

    def __init__(self, stage: Stage, done: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=stage.expected - stage.bad_units, initial=done, unit="cot",
            smoothing=0.1, mininterval=1.0,
        )  # fmt: skip
        self.say = lambda line: self._bar.write(line, file=sys.stderr)
        self._right = self._seen = self._failed = 0

    def show(self, outcome: Outcome) -> None:
        ask = outcome.ask
        task, label = TASKS[ask.comparison.task], ask.comparison.presented(ask.order)[1]
        for response in outcome.responses:
            self._seen += 1
            verdict = judge(response.text, task, label, response.finish_reason)
            self._right += verdict.verdict == "correct"
        self._failed += ask.count if outcome.reason else 0
        accuracy = f"{self._right / max(1, self._seen):.3f}"
        self._bar.set_postfix(accuracy=accuracy, failed=self._failed, refresh=False)
        self._bar.update(ask.count)

    def close(self) -> None:
        self._bar.close()


async def _collect(
    stage: Stage, journal: Journal, server: Server, how: Sampling, run: str
) -> dict[str, Any]:
    """Ask for everything that is missing; how it went. A response counts once it is on disk."""
    settings = stage.settings
    stop = _stop_on_signals()
    done, failed = stage.progress()
    before, requests = stage.counts["completion_tokens"], 0
    progress = _Progress(stage, done + (0 if settings.retry_failed else failed))
    limit = None if settings.concurrency == "auto" else int(settings.concurrency)
    capacity = Capacity(limit, progress.say)
    outage = Outage(server, how, settings.max_pause, stop, progress.say)
    began = time.monotonic()
    try:
        cache = settings.media_root / ".cache" / "media"
        with MediaReader(settings.image_max_pixels, cache) as reader:
            url_of = _url_of(settings, reader)
            batches = sample(stage.asks(), server, how, url_of, capacity, outage, stop)
            async with aclosing(batches):
                async for batch in batches:
                    entries = [
                        entry
                        for outcome in batch
                        for entry in journal_lines(outcome, run, stage.hashes)
                    ]
                    # Once for all that came meanwhile, and beside the loop: a disk takes its time.
                    offsets = await asyncio.to_thread(journal.append, entries)
                    for entry, offset in zip(entries, offsets, strict=True):
                        stage.enter(entry, offset)
                    for outcome in batch:
                        requests += bool(outcome.responses)
                        progress.show(outcome)
    except OSError as error:
        raise UserError(
            f"{error.filename or journal.path}: cannot be written: {error.strerror}; "
            "everything before is kept, the same command continues"
        ) from None
    finally:
        progress.close()
        # What follows waits for nobody: an interrupt ends it.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
    seconds = max(1e-9, time.monotonic() - began - outage.seconds)
    responses = stage.progress()[0] - done
    tokens = stage.counts["completion_tokens"] - before
    return {
        "interrupted": stop.is_set(),
        "server_gone": outage.gone,
        "concurrency": capacity.summary(),
        "pauses": outage.pauses,
        "paused_seconds": round(outage.seconds, 2),
        "asking_seconds": round(seconds, 2),
        "requests_per_second": round(requests / seconds, 2),
        "responses_per_second": round(responses / seconds, 2),
        "completion_tokens_per_second": round(tokens / seconds, 1),
    }


def _sampling(settings: InferenceSettings, model: str) -> Sampling:
    return Sampling(
        model, settings.temperature, settings.top_p, settings.max_tokens,
        settings.timeout, settings.deadline, settings.max_attempts,
    )  # fmt: skip


def _resume(stage: Stage, model: str | None) -> dict[str, Any]:
    """Take in what the folder's journal holds; the run's settings in full. Raises UserError.

    `model` None: without a server it is taken to be the one of the run that is there.
    """
    settings = stage.settings
    there = settings.out / "settings.json"
    before = run_there(there)
    current = jsonable(asdict(settings)) | {
        "model": model or before.get("model"), "templates": stage.hashes,
    }  # fmt: skip
    resolved = same_run(there, before, current)
    journal = settings.out / "journal.jsonl"
    stage.resume(journal, run_key(resolved), resolved["templates"].values())
    return resolved


async def _run(settings: InferenceSettings, api_key: str) -> int:
    started = time.monotonic()
    async with Server(settings.base_url, api_key) as server:
        model = await server.model(settings.model)
        with (
            Journal(settings.out / "journal.jsonl") as journal,
            Ledger(settings.out / ".ledger.sqlite") as ledger,
        ):
            for leftover in settings.out.glob(".*.json*.*"):  # of a run that was killed
                leftover.unlink()
            stage = Stage(settings, ledger)
            resolved = _resume(stage, model)
            write_json(settings.out / "settings.json", resolved)
            # A summary says that the folder is complete; until this run is over it is not.
            (settings.out / "summary.json").unlink(missing_ok=True)
            how = _sampling(settings, model)
            if settings.media == "file":
                await _probe_files(settings, server, how)
            went = await _collect(stage, journal, server, how, run_key(resolved))
            return _finish(stage, journal.path, resolved, went, started)


def _finish(
    stage: Stage, journal: Path, resolved: dict[str, Any], went: dict[str, Any], started: float
) -> int:
    """Derive the files from the journal, check the account, write the summary last."""
    settings = stage.settings
    found = results.derive(
        settings.out, stage.ledger, journal, stage.templates, settings.asked_orders,
        settings.num_samples, settings.allow_incoherent,
    )  # fmt: skip
    account = {
        "expected": stage.expected,
        "judged": found.judged,
        "failed": found.failed_units,
        "not_asked": stage.expected - found.judged - found.failed_units,
    }
    first_duplicates = [row["where"] for row in islice(stage.ledger.duplicates(), 20)]
    interrupted, gone = went.pop("interrupted"), went.pop("server_gone")
    summary = {
        "stage": "inference",
        "account": account,
        "files": {name: found.rows[name] for name in results.FILES[:3]},
        "failed_reasons": dict(found.reasons),
        "duplicates": {"count": stage.ledger.duplicate_count, "first": first_duplicates},
        **found.figures,
        **{name: stage.counts[name] for name in ("prompt_tokens", "completion_tokens", "retries")},
        **went,
        "seconds": round(time.monotonic() - started, 2),
        "template_hashes": resolved["templates"],
        "settings": resolved,
        "command": sys.argv,
        "versions": versions("openai", "aiohttp", "pillow"),
    }
    _print(summary, settings.out)
    if interrupted:
        print("stopped early; the same command continues", file=sys.stderr)
        return 130
    if gone:
        print(
            f"error: the server was out for more than {settings.max_pause:.0f} s ({gone}); "
            "everything before is kept, the same command continues",
            file=sys.stderr,
        )
        return 1
    if account["not_asked"]:
        print(f"error: the account does not hold: {account}", file=sys.stderr)
        return 1
    write_json(settings.out / "summary.json", summary)
    if not found.judged:
        print(f"error: nothing succeeded; see {settings.out / 'failed.jsonl'}", file=sys.stderr)
        return 1
    return 0


def _print(summary: dict[str, Any], out: Path) -> None:
    accuracy, files, account = summary["accuracy"], summary["files"], summary["account"]
    print(
        f"{out}: {account['judged']} judged of {account['expected']}, {account['failed']} failed, "
        f"{account['not_asked']} not asked; correct.jsonl {files['correct']}, "
        f"incorrect.jsonl {files['incorrect']}, unusable.jsonl {files['unusable']}\n"
        f"accuracy {accuracy['share']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}], "
        f"well-formed {summary['well_formed']['share']:.1%}, "
        f"coherent {summary['coherent']['share']:.1%}, "
        f"answers 1: {summary['answers_1']['share']:.1%}, "
        f"{summary['responses_per_second']} responses/s "
        f"(concurrency {summary['concurrency']['mode']}: {summary['concurrency']['limit']})"
    )
    if account["failed"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["failed_reasons"].items())
        print(f"failed.jsonl: {reasons}; --retry-failed asks again")


def _dry_run(settings: InferenceSettings) -> int:
    """Print the first request without its image bytes, and the counts; send and write nothing."""
    with Ledger(None) as ledger:
        stage = Stage(settings, ledger)
        journal, there = settings.out / "journal.jsonl", settings.out / "settings.json"
        if journal.exists() and there.exists():
            _resume(stage, settings.model)
        done, failed = stage.progress()
        units = requests = 0
        first = None
        for ask in filter(None, stage.asks()):
            first = first or ask
            units, requests = units + ask.count, requests + 1
        print(json.dumps({
            "comparisons": len(ledger), "bad_records": ledger.bad_count,
            "duplicates": ledger.duplicate_count, "expected": stage.expected,
            "judged": done, "failed": failed, "to_ask": units, "requests": requests,
            "template_hashes": stage.hashes,
        }, indent=2))  # fmt: skip
        if first is None:
            return 0
        how = _sampling(settings, settings.model or "(the one that the server lists)")
        reader = MediaReader(settings.image_max_pixels, cache_dir=None)
        urls = []
        for path in first.media:
            try:
                file = resolve(path, settings.media_root, settings.image_root)
                _, data, mime = reader.read(file)
                told = f"data:{mime};base64,({len(data):,} bytes of {path})"
            except MediaError as error:
                told = f"({error})"
            urls.append([json.dumps(told).encode()])
        content = wire.content(first.prompt, first.placeholder, urls)
        request = json.loads(wire.body(content, how, first.count, first.seed))
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return 0


def infer(settings: InferenceSettings, api_key: str) -> int:
    """Run stage 2's inference; returns the exit code. Raises UserError."""
    try:
        return _dry_run(settings) if settings.dry_run else asyncio.run(_run(settings, api_key))
    except ServerError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename or settings.out}: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise UserError(f"{settings.out / '.ledger.sqlite'}: cannot be written: {error}") from None
