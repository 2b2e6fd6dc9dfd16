"""Stage 2: read comparisons, ask the server for chains of thought, judge and save them."""

import asyncio
import hashlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from cot_reward import media
from cot_reward.client import Ask, Client, Outcome, Sampling, ServerError, sample
from cot_reward.judge import destination, judge
from cot_reward.pool import Pool, read_pool
from cot_reward.records import ORDERS, Comparison, Order, Response, conversation
from cot_reward.settings import UserError, plain
from cot_reward.stats import tally
from cot_reward.store import Journal, write_json, write_jsonl
from cot_reward.tasks import TASKS, check_template, fill, template_hash


def _help(text: str, **default: Any) -> Any:
    return field(metadata={"help": text}, **default)


@dataclass(frozen=True)
class InferenceSettings:
    data: list[Path] = _help("JSON or JSONL files of labelled comparisons")
    out: Path = _help("folder for the results; the same command continues a stopped run")
    source: str | None = _help("adapter; found from the rows without it", default=None)
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
    concurrency: int = _help("requests in flight", default=64)
    image_max_pixels: int = _help("larger images are resized as in training", default=262144)
    timeout: float = _help("seconds for one attempt", default=600.0)
    max_attempts: int = _help("per request", default=5)
    limit: int | None = _help("only the first comparisons", default=None)
    allow_incoherent: bool = _help(
        "let right answers with contradicting totals into correct.jsonl", default=False
    )

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                "--temperature 0 always gives the same text; use --num-samples 1, or sample"
            )
        bounds = {
            "num_samples": 1, "max_tokens": 1, "concurrency": 1, "max_attempts": 1,
            "image_max_pixels": 1, "temperature": 0, "timeout": 0.001, "top_p": 1e-9,
        }  # fmt: skip
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}")

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else (self.orders,)


def _prompt_text(comparison: Comparison, template: str) -> str:
    if TASKS[comparison.task].placeholder:
        return fill(template, {"caption": comparison.text})
    first, second = comparison.candidates
    return fill(template, {"question": comparison.text, "answer_1": first, "answer_2": second})


class Stage:
    """One run: what is asked, the journal of what came, and the files derived from it."""

    def __init__(self, settings: InferenceSettings, pool: Pool, journal: Journal) -> None:
        self.settings, self.pool, self.journal = settings, pool, journal
        self.templates = self._templates()
        # (key, order, sample) -> response; the journal is the truth, this is its index.
        self.responses: dict[tuple[str, str, int], Response] = {}
        self.failed: dict[tuple[str, str], dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        for entry in journal.entries():
            self._remember(entry)

    def _templates(self) -> dict[str, str]:
        """task -> template, checked."""
        templates = {}
        own = None
        if self.settings.template:
            try:
                own = self.settings.template.read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:
                raise UserError(f"--template {self.settings.template}: {error.strerror}") from None
        for name in {comparison.task for comparison in self.pool.comparisons.values()}:
            templates[name] = own or TASKS[name].template
            try:
                check_template(templates[name], TASKS[name])
            except ValueError as error:
                raise UserError(f"--template {self.settings.template}: {error}") from None
        return templates

    def _remember(self, entry: dict[str, Any]) -> None:
        unit = (entry["key"], entry["order"], entry["sample"])
        self.responses[unit] = Response(
            entry["text"], entry["finish_reason"], entry["model"], entry["sample"]
        )
        self.counts["prompt_tokens"] += entry.get("prompt_tokens", 0)
        self.counts["completion_tokens"] += entry.get("completion_tokens", 0)
        self.counts["retries"] += entry.get("retries", 0)

    def asks(self) -> Iterator[Ask]:
        """Every request that is still needed; the requests of a comparison follow each other."""
        for key, comparison in self.pool.comparisons.items():
            for order in self.settings.asked_orders:
                missing = [
                    index
                    for index in range(self.settings.num_samples)
                    if (key, order, index) not in self.responses
                ]
                # Consecutive samples share one request: the server gives sample i the seed + i.
                while missing:
                    run = 1
                    while run < len(missing) and missing[run] == missing[0] + run:
                        run += 1
                    first = missing[0]
                    yield Ask(
                        comparison, order, first, run,
                        seed=request_seed(self.settings.seed, key, order) + first,
                        prompt=_prompt_text(comparison, self.templates[comparison.task]),
                    )  # fmt: skip
                    missing = missing[run:]

    def take(self, outcome: Outcome) -> None:
        """Journal an outcome; it counts only once it is on disk."""
        ask = outcome.ask
        key = ask.comparison.key
        if outcome.reason:
            self.counts["retries"] += outcome.retries
            entry = self.failed.setdefault(
                (key, ask.order),
                {"id": key, "where": self.pool.position[key], "order": ask.order,
                 "reason": outcome.reason, "detail": outcome.detail, "units": 0},
            )  # fmt: skip
            entry["units"] += ask.count
            return
        entries = [
            {"key": key, "order": ask.order, "sample": response.sample, "text": response.text,
             "finish_reason": response.finish_reason, "model": response.model, "seed": ask.seed}
            for response in outcome.responses
        ]  # fmt: skip
        # Tokens are counted by the server per request; the first sample carries them.
        entries[0] |= {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "retries": outcome.retries,
        }
        self.journal.append(entries)
        for entry in entries:
            self._remember(entry)

    def rows(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """(file, row, mismatch) of every judged response, in input order."""
        for key, comparison in self.pool.comparisons.items():
            task = TASKS[comparison.task]
            template = self.templates[comparison.task]
            for order in self.settings.asked_orders:
                candidates, label = comparison.presented(order)
                shown = [*comparison.context, *candidates] if task.placeholder else []
                prompt = task.placeholder * len(shown) + _prompt_text(comparison, template)
                for index in range(self.settings.num_samples):
                    response = self.responses.get((key, order, index))
                    if response is None:
                        continue
                    verdict = judge(response.text, task, label, response.finish_reason)
                    row = {
                        "conversations": conversation(prompt, response.text),
                        "images": shown if task.placeholder == "<image>" else [],
                        "videos": shown if task.placeholder == "<video>" else [],
                        "id": key,
                        "task": task.name,
                        "source": comparison.source,
                        "order": order,
                        "sample": index,
                        "label": label,
                        "answer": verdict.answer,
                        "verdict": verdict.verdict,
                        "coherence": verdict.coherence,
                        "finish_reason": response.finish_reason,
                        "model": response.model,
                        "template_hash": template_hash(template),
                    }
                    file = destination(verdict, self.settings.allow_incoherent)
                    yield file, row, verdict.mismatch


def request_seed(seed: int, key: str, order: str) -> int:
    """A seed for the first sample of a comparison in one order, below 2**52.

    Exact as a JSON double anywhere, with room to add sample indices.
    """
    digest = hashlib.sha256(f"{seed}\n{key}\n{order}".encode()).hexdigest()
    return int(digest[:13], 16)


# Changing one of these would mix two kinds of responses in one folder.
_FIXED = ("model", "temperature", "top_p", "max_tokens", "seed", "image_max_pixels", "templates")


def _check_same_run(path: Path, current: dict[str, Any]) -> None:
    import json

    if not path.exists():
        write_json(path, current)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{name}: {before.get(name)!r} there, {current[name]!r} now"
        for name in _FIXED
        if before.get(name) != current[name]
    ]
    if differing:
        raise UserError(
            f"{path.parent} holds a run with other settings; use another --out, or the same "
            "settings:\n  " + "\n  ".join(differing)
        )


async def _collect(stage: Stage, client: Client, how: Sampling) -> bool:
    """Ask for everything that is missing. True when a signal stopped it early."""
    from tqdm import tqdm

    settings = stage.settings
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping: waiting for the requests in flight", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)

    def read_medium(path: str) -> tuple[bytes, str]:
        return media.encoded(
            media.resolve(path, settings.media_root),
            settings.image_max_pixels,
            settings.media_root / ".cache" / "media",
        )

    total = len(stage.pool.comparisons) * len(settings.asked_orders) * settings.num_samples
    right = seen = 0
    bar = tqdm(total=total, initial=_have(stage), unit="cot", smoothing=0.1, mininterval=1.0)
    with bar:
        outcomes = sample(
            stage.asks(), client, how, read_medium, media.MediaError, settings.concurrency, stop
        )
        async for outcome in outcomes:
            stage.take(outcome)
            ask = outcome.ask
            label = ask.comparison.presented(ask.order)[1]
            task = TASKS[ask.comparison.task]
            for response in outcome.responses:
                seen += 1
                verdict = judge(response.text, task, label, response.finish_reason)
                right += verdict.verdict == "correct"
            accuracy = f"{right / max(1, seen):.3f}"
            bar.set_postfix(accuracy=accuracy, failed=len(stage.failed), refresh=False)
            bar.update(ask.count)
    return stop.is_set()


def _have(stage: Stage) -> int:
    return sum(
        (key, order, index) in stage.responses
        for key in stage.pool.comparisons
        for order in stage.settings.asked_orders
        for index in range(stage.settings.num_samples)
    )


async def _run(settings: InferenceSettings, api_key: str) -> int:
    started = time.monotonic()
    pool = read_pool(
        settings.data, settings.media_root, settings.image_root, settings.source, settings.limit
    )
    async with Client(settings.base_url, api_key) as client:
        try:
            model = await client.model(settings.model)
        except ServerError as error:
            raise UserError(str(error)) from None
        with Journal(settings.out / "journal.jsonl") as journal:
            stage = Stage(settings, pool, journal)
            hashes = {name: template_hash(text) for name, text in sorted(stage.templates.items())}
            resolved = plain(asdict(settings)) | {"model": model, "templates": hashes}
            _check_same_run(settings.out / "settings.json", resolved)
            # A summary says that the folder is complete; until this run is over it is not.
            (settings.out / "summary.json").unlink(missing_ok=True)
            how = Sampling(
                model, settings.temperature, settings.top_p, settings.max_tokens,
                settings.timeout, settings.max_attempts,
            )  # fmt: skip
            before, tokens_before = _have(stage), stage.counts["completion_tokens"]
            asking = time.monotonic()
            try:
                stopped = await _collect(stage, client, how)
            except OSError as error:
                raise UserError(
                    f"{error.filename or journal.path}: cannot be written: {error.strerror}; "
                    "everything before is kept, the same command continues"
                ) from None
            seconds = time.monotonic() - asking
            new = _have(stage) - before
            tokens = stage.counts["completion_tokens"] - tokens_before
            speed = {
                "asking_seconds": round(seconds, 2),
                "responses_per_second": round(new / seconds, 2) if seconds else 0.0,
                "completion_tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
            }
            return _finish(stage, resolved, speed, started, stopped)


def _finish(
    stage: Stage, resolved: dict[str, Any], speed: dict[str, Any], started: float, stopped: bool
) -> int:
    """Derive the files from the journal, check the account, write the summary last."""
    settings, pool = stage.settings, stage.pool
    files: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": [], "unusable": []}
    rows, mismatches = [], 0
    for name, row, mismatch in stage.rows():
        files[name].append(row)
        rows.append(row)
        mismatches += mismatch
    for name, content in files.items():
        write_jsonl(settings.out / f"{name}.jsonl", content)
    per_record = len(settings.asked_orders) * settings.num_samples
    failed = [bad | {"order": "", "units": per_record} for bad in pool.bad]
    failed += stage.failed.values()
    write_jsonl(settings.out / "failed.jsonl", failed)
    expected = (len(pool.comparisons) + len(pool.bad)) * per_record
    failed_units = sum(entry["units"] for entry in failed)
    not_asked = expected - len(rows) - failed_units
    account = {
        "expected": expected, "judged": len(rows), "failed": failed_units, "not_asked": not_asked,
    }  # fmt: skip
    figures = tally(rows, mismatches)
    summary = {
        "stage": "inference",
        "account": account,
        "files": {name: len(content) for name, content in files.items()},
        "failed_reasons": dict(Counter(entry["reason"] for entry in failed)),
        "duplicates": {"count": len(pool.duplicates), "first": pool.duplicates[:20]},
        **figures,
        **{name: stage.counts[name] for name in ("prompt_tokens", "completion_tokens", "retries")},
        **speed,
        "seconds": round(time.monotonic() - started, 2),
        "settings": resolved,
        "command": sys.argv,
        "versions": {name: version(name) for name in ("openai", "pillow")},
    }
    _print(summary, settings.out)
    if stopped:
        print("stopped early; the same command continues", file=sys.stderr)
        return 130
    if not_asked:
        print(f"error: the account does not hold: {account}", file=sys.stderr)
        return 1
    write_json(settings.out / "summary.json", summary)
    if not rows:
        print(f"error: nothing succeeded; see {settings.out / 'failed.jsonl'}", file=sys.stderr)
        return 1
    return 0


def _print(summary: dict[str, Any], out: Path) -> None:
    accuracy, files = summary["accuracy"], summary["files"]
    print(
        f"{out}: {summary['account']['judged']} judged of {summary['account']['expected']}, "
        f"{summary['account']['failed']} failed; correct.jsonl {files['correct']}, "
        f"incorrect.jsonl {files['incorrect']}, unusable.jsonl {files['unusable']}\n"
        f"accuracy {accuracy['share']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}], "
        f"well-formed {summary['well_formed']['share']:.1%}, "
        f"coherent {summary['coherent']['share']:.1%}, "
        f"answers 1: {summary['answers_1']['share']:.1%}, "
        f"{summary['responses_per_second']} responses/s"
    )


def infer(settings: InferenceSettings, api_key: str) -> int:
    """Run stage 2's inference; returns the exit code. Raises UserError."""
    return asyncio.run(_run(settings, api_key))
