"""Stage 2: read comparisons, ask the server for chains of thought, judge and save them."""

import asyncio
import hashlib
import json
import platform
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cot_reward import media, results, tasks
from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.flow import ReadMedium, sample
from cot_reward.client.outage import Outage
from cot_reward.client.server import AttemptError, Server, ServerError
from cot_reward.client.wire import Ask, Outcome, Sampling
from cot_reward.judge import judge
from cot_reward.ledger import Ledger, ascending
from cot_reward.pool import read_pool
from cot_reward.records import ORDERS, Order
from cot_reward.settings import UserError, plain
from cot_reward.store import Journal, journal_entries, write_json
from cot_reward.tasks import TASKS, check_template, template_hash


def _help(text: str, **default: Any) -> Any:
    return field(metadata={"help": text}, **default)


@dataclass(frozen=True)
class InferenceSettings:
    data: list[Path] = _help(
        "JSON, JSONL or Parquet files of labelled comparisons; -: standard input; repeatable"
    )
    out: Path = _help("folder for the results; the same command continues a stopped run")
    source: str | None = _help("adapter; found from the rows without it", default=None)
    task: str | None = _help("of records that do not name theirs", default=None)
    template: Path | None = _help("prompt template file; our own without it", default=None)
    media_root: Path = _help("all written paths are relative to it", default=Path("dataset"))
    image_root: Path | None = _help(
        "what the raw rows' paths are relative to (default: the media root)", default=None
    )
    base_url: str = _help("the server", default="http://127.0.0.1:8000/v1")
    model: str | None = _help("default: the one that the server lists", default=None)
    api_key_env: str = _help(
        "environment variable that holds the API key", default="OPENAI_API_KEY"
    )
    num_samples: int = _help("chains of thought per comparison and order", default=4)
    temperature: float = _help("0: greedy", default=1.0)
    top_p: float = _help("nucleus sampling", default=1.0)
    max_tokens: int = _help("bound on a chain of thought, in tokens", default=2048)
    seed: int = _help("of the run", default=0)
    orders: Literal["given", "swapped", "both"] = _help("presentation orders", default="both")
    concurrency: str = _help(
        "requests in flight; auto: as many as make the server faster", default="auto"
    )
    media: Literal["inline", "file"] = _help(
        "inline: images travel in the request; file: the server reads them by file:// address",
        default="inline",
    )
    image_max_pixels: int = _help("larger images are resized as in training", default=262144)
    timeout: float = _help("seconds for one attempt", default=600.0)
    deadline: float = _help("seconds for a request with all its attempts", default=3600.0)
    max_attempts: int = _help("per request", default=5)
    max_pause: float = _help("seconds to wait for a server that is out", default=1800.0)
    limit: int | None = _help("only the first comparisons", default=None)
    retry_failed: bool = _help("ask again for what failed in earlier runs", default=False)
    dry_run: bool = _help("print the first request and the counts, send nothing", default=False)
    allow_incoherent: bool = _help(
        "let right answers with contradicting totals into correct.jsonl", default=False
    )

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                "--temperature 0 always gives the same text; use --num-samples 1, or sample"
            )
        bounds = {
            "num_samples": 1, "max_tokens": 1, "max_attempts": 1, "image_max_pixels": 1,
            "temperature": 0, "timeout": 0.001, "deadline": 0.001, "max_pause": 0, "top_p": 1e-9,
        }  # fmt: skip
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}")
        if self.concurrency != "auto" and not (
            self.concurrency.isdecimal() and int(self.concurrency) > 0
        ):
            raise ValueError(f"--concurrency {self.concurrency}: a number from 1, or auto")
        if "@" in self.base_url or "?" in self.base_url:
            # It is written to files and messages.
            raise ValueError(
                "--base-url must not hold a name, password or query; put the key into the "
                "environment variable that --api-key-env names"
            )

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else (self.orders,)


def request_seed(seed: int, key: str, order: str) -> int:
    """A seed for the first sample of a comparison in one order, below 2**52.

    Exact as a JSON double anywhere, with room to add sample indices.
    """
    digest = hashlib.sha256(f"{seed}\n{key}\n{order}".encode()).hexdigest()
    return int(digest[:13], 16)


class Stage:
    """One run: what is asked, and the journal and ledger of what came."""

    def __init__(self, settings: InferenceSettings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.counts: Counter[str] = Counter()
        templates = self._templates()
        read_pool(
            ledger, settings.data, settings.media_root, settings.image_root,
            settings.source, settings.task, settings.limit,
            # A template with placeholders of its own fits so many media.
            lambda comparison: tasks.prompt(comparison, "given", templates[comparison.task]),
        )  # fmt: skip
        self.templates = {name: templates[name] for name in ledger.tasks()}
        for name, template in self.templates.items():
            if TASKS[name].medium != "image":
                raise UserError(f"comparisons of task {name}: videos cannot be sent yet")
            try:
                check_template(template, TASKS[name])
            except ValueError as error:
                raise UserError(f"--template {settings.template}: {error}") from None
        self.hashes = {name: template_hash(text) for name, text in self.templates.items()}

    def _templates(self) -> dict[str, str]:
        """task -> template."""
        path = self.settings.template
        if path is None:
            return {name: task.template for name, task in TASKS.items()}
        try:
            return dict.fromkeys(TASKS, path.read_text(encoding="utf-8").rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {path}: cannot be read: {error}") from None

    def resume(self, journal: Path, run: str, templates: Collection[str]) -> None:
        """Take in what the journal holds.

        Raises UserError for responses of another run, or to prompts of other templates.
        """
        for offset, entry in journal_entries(journal):
            if entry["run"] != run or entry["template"] not in templates:
                raise UserError(f"{journal}: holds responses of other settings; use another --out")
            self.enter(entry, offset)

    def enter(self, entry: dict[str, Any], offset: int) -> None:
        """Count a journal entry that is on disk."""
        self.ledger.enter(entry, offset)
        for name in ("prompt_tokens", "completion_tokens", "retries"):
            self.counts[name] += entry.get(name, 0)

    def progress(self) -> tuple[int, int]:
        """Units with a response, and units that failed."""
        return self.ledger.progress(self.settings.asked_orders, self.settings.num_samples)

    @property
    def per_record(self) -> int:
        return len(self.settings.asked_orders) * self.settings.num_samples

    @property
    def bad_units(self) -> int:
        return self.ledger.bad_count * self.per_record

    @property
    def expected(self) -> int:
        return len(self.ledger) * self.per_record + self.bad_units

    def asks(self) -> Iterator[Ask | None]:
        """Every request that is still needed; the requests of a comparison follow each other.

        None now and then while there is nothing to ask, so that others get their turn.
        """
        settings = self.settings
        for position, listed in enumerate(self.ledger):
            if position % 256 == 255:
                yield None
            comparison = listed.comparison
            template = self.templates[comparison.task]
            for order in settings.asked_orders:
                known = self.ledger.known(listed, order, settings.num_samples)
                done = {n for n, (_, failed) in known.items() if not failed}
                settled = done if settings.retry_failed else known.keys()
                missing = [n for n in range(settings.num_samples) if n not in settled]
                # Consecutive samples share one request: the server gives sample i the seed + i.
                for first, count in _consecutive(missing):
                    yield Ask(
                        comparison, listed.key, order, first, count,
                        seed=request_seed(settings.seed, listed.key, order) + first,
                        prompt=tasks.prompt(comparison, order, template),
                        placeholder=TASKS[comparison.task].placeholder,
                        media=tasks.shown(comparison, order),
                    )  # fmt: skip


def _consecutive(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of consecutive numbers."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end


def _entries(outcome: Outcome, run: str, templates: Mapping[str, str]) -> list[dict[str, Any]]:
    """The journal's lines of an outcome: one for each response, or one for the failure."""
    ask = outcome.ask
    unit = {
        "key": ask.key, "order": ask.order, "ascending": ascending(ask.comparison, ask.order),
        "run": run, "template": templates[ask.comparison.task],
    }  # fmt: skip
    if outcome.reason:
        failure = {"first": ask.first, "count": ask.count, "reason": outcome.reason,
                   "detail": outcome.detail, "retries": outcome.retries}  # fmt: skip
        return [unit | failure]
    entries = [
        unit | {"sample": response.sample, "text": response.text, "seed": ask.seed,
                "finish_reason": response.finish_reason, "model": response.model}
        for response in outcome.responses
    ]  # fmt: skip
    # The server counts tokens by request; the first sample carries them.
    entries[0] |= {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "retries": outcome.retries,
    }
    return entries


# Changing one of these would mix two kinds of responses in one folder.
_FIXED = ("model", "temperature", "top_p", "max_tokens", "seed", "image_max_pixels")


def _run_key(resolved: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for model and sampling settings."""
    fixed = json.dumps([resolved[name] for name in _FIXED])
    return hashlib.sha256(fixed.encode()).hexdigest()[:16]


def _same_run(path: Path, current: dict[str, Any]) -> dict[str, Any]:
    """The run's settings, with the templates that the run there has for other tasks.

    Raises UserError when the run that is there has other settings.
    """
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            templates = dict(before["templates"])
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path}: not a run's settings; restore or remove it") from None
        differing = [
            f"{name}: {before.get(name)!r} there, {current[name]!r} now"
            for name in _FIXED
            if before.get(name) != current[name] is not None
        ]
        differing += [
            f"template of {task}: {templates[task]} there, {hashed} now"
            for task, hashed in current["templates"].items()
            if templates.get(task, hashed) != hashed
        ]
        if differing:
            raise UserError(
                f"{path.parent} holds a run with other settings; use another --out, or the same "
                "settings:\n  " + "\n  ".join(differing)
            )
        # Data of another task may have been added.
        return current | {"templates": templates | current["templates"]}
    return current


def _file_url(path: Path) -> list[bytes]:
    return [json.dumps(path.resolve().as_uri()).encode()]


def _url_of(settings: InferenceSettings, reader: media.Reader) -> ReadMedium:
    """What turns a path below the media root into the URL that is sent."""
    within = settings.image_root or settings.media_root

    def url(path: str) -> Iterable[bytes]:
        file = media.resolve(path, settings.media_root, within)
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
        with media.Reader(settings.image_max_pixels, cache) as reader:
            url_of = _url_of(settings, reader)
            batches = sample(stage.asks(), server, how, url_of, capacity, outage, stop)
            async with aclosing(batches):
                async for batch in batches:
                    entries = [
                        entry for outcome in batch for entry in _entries(outcome, run, stage.hashes)
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
            resolved = plain(asdict(settings)) | {"model": model, "templates": stage.hashes}
            resolved = _same_run(settings.out / "settings.json", resolved)
            run = _run_key(resolved)
            stage.resume(journal.path, run, resolved["templates"].values())
            write_json(settings.out / "settings.json", resolved)
            # A summary says that the folder is complete; until this run is over it is not.
            (settings.out / "summary.json").unlink(missing_ok=True)
            how = Sampling(
                model, settings.temperature, settings.top_p, settings.max_tokens,
                settings.timeout, settings.deadline, settings.max_attempts,
            )  # fmt: skip
            if settings.media == "file":
                await _probe_files(settings, server, how)
            went = await _collect(stage, journal, server, how, run)
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
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("openai", "aiohttp", "pillow")},
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
            # Without a server the model is taken to be the one of the run that is there.
            resolved = plain(asdict(settings)) | {"templates": stage.hashes}
            resolved = _same_run(there, resolved)
            before = json.loads(there.read_text(encoding="utf-8"))
            run = _run_key(resolved | {"model": settings.model or before["model"]})
            stage.resume(journal, run, resolved["templates"].values())
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
        how = Sampling(
            settings.model or "(the one that the server lists)", settings.temperature,
            settings.top_p, settings.max_tokens, settings.timeout, settings.deadline,
            settings.max_attempts,
        )  # fmt: skip
        reader = media.Reader(settings.image_max_pixels, cache_dir=None)
        urls = []
        for path in first.media:
            try:
                file = media.resolve(path, settings.media_root, settings.image_root)
                _, data, mime = reader.read(file)
                told = f"data:{mime};base64,({len(data):,} bytes of {path})"
            except media.MediaError as error:
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
