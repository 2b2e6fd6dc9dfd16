"""Best of N from files: every prompt's candidates ranked, journal first, from start to end."""

import asyncio
import hashlib
import json
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.media.paths import MediaError
from cot_reward.provenance import jsonable, versions
from cot_reward.reward.model import RewardModel
from cot_reward.reward.question import Candidate, pictures_in
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.reward.score_folder import PASSING, ScoreJournal, check_folder, fixed_settings
from cot_reward.reward.score_folder import run_hash as hash_of
from cot_reward.reward.score_rows import Rows, ScoreRow, read_score_rows
from cot_reward.reward.settings import RewardSettings, ScoreSettings
from cot_reward.stats import share
from cot_reward.store import remove_leftovers, without_nan, write_json, write_jsonl
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import template_hash

# Rows that are looked at ahead: their pictures are hashed, and wait for their turn unread.
ROWS_AHEAD = 512


def score(settings: ScoreSettings, reward: RewardSettings, api_key: str) -> int:
    """Rank the candidates of every row; returns the exit code. Raises UserError."""
    rows = read_score_rows(settings, TASKS[reward.task])
    _check_rows(rows, settings)
    bar = tqdm(total=len(rows.good), unit="prompt", mininterval=1.0, smoothing=0.1)
    try:
        with (
            bar,
            RewardModel.of(
                reward, api_key, lambda line: tqdm.write(line, file=sys.stderr)
            ) as model,
        ):
            return asyncio.run(_score(settings, reward, rows, model, bar))
    except OSError as error:
        raise UserError(
            f"{error.filename or settings.out}: cannot be written: {error.strerror}; everything "
            "before is kept, the same command continues"
        ) from None


def _check_rows(rows: Rows, settings: ScoreSettings) -> None:
    """Raises UserError when too many rows are bad, or some cannot be ranked as asked."""
    count = len(rows.good) + len(rows.bad)
    if rows.bad and len(rows.bad) > settings.max_bad_rows * count:
        first = rows.bad[0]
        raise UserError(
            f"{len(rows.bad)} of {count} rows are bad, more than --max-bad-rows "
            f"{settings.max_bad_rows:g}; nothing was asked. The first: {first['where']}: "
            f"{first['detail']}"
        )
    if settings.max_comparisons is not None:
        for row in rows.good:
            least = len(row.candidates) - (0 if settings.reference else 1)
            if settings.max_comparisons < least:
                raise UserError(
                    f"{row.where}: {len(row.candidates)} candidates need at least {least} "
                    f"comparisons; --max-comparisons is {settings.max_comparisons}"
                )


async def _score(
    settings: ScoreSettings, reward: RewardSettings, rows: Rows, model: RewardModel, bar: Any
) -> int:
    started = time.monotonic()
    out, served = settings.out, model.served
    fixed = fixed_settings(reward, served["model"], template_hash(model.template))
    known = check_folder(out, fixed, served, settings.any_weights)
    with ScoreJournal(out / "journal.jsonl", hash_of(fixed), settings.retry_failed) as journal:
        remove_leftovers(out)
        own, asked = jsonable(asdict(settings)), jsonable(asdict(reward))
        resolved = {**own, **asked, "fixed": fixed, "served_model": known}
        write_json(out / "settings.json", resolved)
        # A summary says that the folder is complete, which it is not until this run ends.
        (out / "summary.json").unlink(missing_ok=True)
        run = _Run(settings, rows, model, journal, bar)
        interrupted = await run.rank_all()
        bar.close()
        run.write_files()
        missing = len(rows.good) - len(run.found)
        if interrupted:
            print("stopped early; the same command continues", file=sys.stderr)
            return 130
        if missing:
            print(
                f"error: the servers are gone ({run.gone}); {missing} prompts are not done; "
                "everything before is kept, the same command continues",
                file=sys.stderr,
            )
            return 1
        summary = run.summary() | {
            "seconds": round(time.monotonic() - started, 2),
            "settings": resolved,
            "command": sys.argv,
            "versions": versions("openai", "aiohttp", "pillow", "numpy"),
        }
        write_json(out / "summary.json", summary)
        return _tell(summary, settings)


def _tell(summary: dict[str, Any], settings: ScoreSettings) -> int:
    account, comparisons, texts = summary["account"], summary["comparisons"], summary["readable"]
    print(
        f"{account['ranked']} of {account['prompts']} prompts are ranked; {comparisons['judged']} "
        f"of {sum(comparisons.values())} comparisons judged, {texts['share']:.1%} of the texts "
        f"readable, {summary['consistent']['share']:.1%} of the judgements the same in both orders"
        f"; see {settings.out / 'best.jsonl'}"
    )
    if not account["ranked"]:
        print(f"error: nothing is ranked; see {settings.out / 'failed.jsonl'}", file=sys.stderr)
        return 1
    problems = []
    if account["not_ranked"] > settings.max_failed * account["prompts"]:
        problems.append(f"{account['not_ranked']} prompts are not ranked (--max-failed)")
    if comparisons["failed"] > settings.max_failed * max(1, sum(comparisons.values())):
        problems.append(f"{comparisons['failed']} comparisons failed (--max-failed)")
    if texts["share"] < settings.min_parsed:
        problems.append(f"only {texts['share']:.1%} of the texts can be read (--min-parsed)")
    for problem in problems:
        print(f"error: {problem}: {summary['failed_reasons']}", file=sys.stderr)
    return 3 if problems else 0


class _Run:
    """One start: rows to rankings."""

    def __init__(
        self,
        settings: ScoreSettings,
        rows: Rows,
        model: RewardModel,
        journal: ScoreJournal,
        bar: Any,
    ) -> None:
        self.gone = ""
        # Row number -> its ranking, as the journal has it, once it is complete.
        self.found: dict[int, dict[str, Any]] = {}
        self._settings, self._rows, self._model = settings, rows, model
        self._journal, self._bar = journal, bar
        self._counts: Counter[str] = Counter()

    async def rank_all(self) -> bool:
        """Rank what is not ranked yet; whether a signal stopped it. Raises OSError."""
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = self._journal.stopping = True
            tqdm.write("stopping: waiting for the comparisons in flight", file=sys.stderr)

        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for caught in signals:
            loop.add_signal_handler(caught, interrupt)
        running: set[asyncio.Task[None]] = set()
        try:
            for number, row in enumerate(self._rows.good):
                if self._journal.stopping:
                    break
                running.add(asyncio.create_task(self._rank(number, row)))
                if len(running) >= ROWS_AHEAD:
                    running = await _some_ended(running)
            while running:
                running = await _some_ended(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for caught in signals:
                loop.remove_signal_handler(caught)
        return interrupted

    async def _rank(self, number: int, row: ScoreRow) -> None:
        settings, model = self._settings, self._model
        key = await self._row_key(row)
        ranking = self._journal.known_row(key)
        if ranking is None:
            if self._journal.stopping:
                return
            found = await model.arank(
                row.prompt, row.candidates, row.context, settings.max_comparisons, row.reference,
                memory=self._journal,
            )  # fmt: skip
            failures = [one for *_, one in found.comparisons if isinstance(one, Failure)]
            if any(one.reason in PASSING for one in failures):
                # Not complete: what was answered is in the journal.
                gone = [one.detail for one in failures if one.reason == "server_gone"]
                self.gone = self.gone or "".join(gone[:1])
                return
            ranking = without_nan(_entry(found))
            # A picture that could not be read in between, or was changed, is asked about again.
            if not found.failures or await self._row_key(row) == key:
                await self._journal.finish_row(key, ranking)
        self.found[number] = ranking
        self._counts.update(ranking["counts"])
        self._bar.set_postfix(
            comparisons=self._counts["judged"], failed=self._counts["failed"], refresh=False
        )
        self._bar.update()

    async def _row_key(self, row: ScoreRow) -> str:
        """What the ranking of a row is of: 64 hexadecimal digits.

        A picture counts by its content, so that another one under its name is asked about again.
        """
        task = TASKS[self._model.settings.task]

        async def content(candidate: Candidate | Failure) -> Any:
            if isinstance(candidate, Failure):
                return [candidate.reason]
            if not task.compares_media:
                return candidate
            return [await digest(one) for one in pictures_in(candidate, task)]

        async def digest(picture: Any) -> str:
            try:
                return await self._model.digest_of(picture)
            except MediaError as error:
                return error.reason

        parts = [
            row.prompt,
            [await content(one) for one in row.candidates],
            [await digest(one) for one in row.context],
            None if row.reference is None else await content(row.reference),
            self._settings.max_comparisons,
        ]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    # --- results ----------------------------------------------------------------------------------

    def write_files(self) -> None:
        """scores.jsonl, best.jsonl and failed.jsonl, of the rows that are complete."""
        out = self._settings.out
        write_jsonl(out / "scores.jsonl", self._score_rows())
        write_jsonl(out / "best.jsonl", self._best_rows())
        write_jsonl(out / "failed.jsonl", self._failed_rows())

    def _complete(self) -> Iterator[tuple[ScoreRow, dict[str, Any]]]:
        for number, row in enumerate(self._rows.good):
            if number in self.found:
                yield row, self.found[number]

    def _score_rows(self) -> Iterator[dict[str, Any]]:
        for row, ranking in self._complete():
            failures = ranking["failures"]
            rank = {i: place for place, i in enumerate(ranking["order"], 1)}
            for i, name in enumerate(row.names):
                failure = failures.get(str(i))
                yield {
                    "id": row.id, "candidate": i, "name": name,
                    "rank": 0 if failure else rank[i],
                    **{column: ranking[column][i]
                       for column in ("strength", "low", "high", "win_rate")},
                    "scores": ranking["scores"][i],
                    "failure": failure["reason"] if failure else "",
                }  # fmt: skip

    def _best_rows(self) -> Iterator[dict[str, Any]]:
        for row, ranking in self._complete():
            best = ranking["best"]
            if best is None:
                continue
            yield {
                "id": row.id, "prompt": row.prompt, "candidate": best, "name": row.names[best],
                **{column: ranking[column][best]
                   for column in ("strength", "low", "high", "win_rate")},
                "candidates": len(row.names), "failed": len(ranking["failures"]),
                "comparisons": ranking["counts"]["judged"],
            }  # fmt: skip

    def _failed_rows(self) -> Iterator[dict[str, Any]]:
        for bad in self._rows.bad:
            yield {**bad, "candidate": -1, "reason": "bad_row"}
        for row, ranking in self._complete():
            for i, failure in ranking["failures"].items():
                # The detail may name another file of the same content.
                detail = f"{row.names[int(i)]}: {failure['detail']}"
                yield {"id": row.id, "where": row.where, "detail": detail,
                       "candidate": int(i), "reason": failure["reason"]}  # fmt: skip

    def summary(self) -> dict[str, Any]:
        counts = self._counts
        reasons = {
            name.removeprefix("failed: "): count
            for name, count in sorted(counts.items())
            if name.startswith("failed: ")
        }
        unusable = Counter(
            failure["reason"] for _, ranking in self._complete()
            for failure in ranking["failures"].values()
        )  # fmt: skip
        ranked = sum(ranking["best"] is not None for _, ranking in self._complete())
        return {
            "stage": "scoring",
            "account": {
                "rows": len(self._rows.good) + len(self._rows.bad), "bad_rows": len(self._rows.bad),
                "prompts": len(self._rows.good), "ranked": ranked,
                "not_ranked": len(self._rows.good) - ranked,
            },
            "candidates": sum(len(row.names) for row, _ in self._complete()),
            "unusable_candidates": dict(unusable),
            "comparisons": {"judged": counts["judged"], "failed": counts["failed"]},
            "failed_reasons": reasons,
            "readable": share(counts["readable"], counts["votes"]),
            "consistent": share(counts["consistent"], counts["judged"]),
            "shown_first_preferred": share(counts["first"], counts["readable"]),
            "prompt_tokens": counts["prompt_tokens"],
            "completion_tokens": counts["completion_tokens"],
            "servers": self._model.summary(),
        }  # fmt: skip


async def _some_ended(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """The tasks that still run, once one has ended. Raises what a task has raised."""
    done, still = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    errors = [error for task in done if (error := task.exception())]
    if errors:
        raise errors[0]
    return still


def _entry(ranking: Ranking) -> dict[str, Any]:
    """A ranking for the journal: what the results need of it, without the texts."""
    return {
        "order": ranking.order, "best": ranking.best, "strength": ranking.strengths,
        "low": ranking.low, "high": ranking.high, "win_rate": ranking.win_rates,
        "scores": _mean_scores(ranking),
        "failures": {str(i): {"reason": one.reason, "detail": one.detail}
                     for i, one in ranking.failures.items()},
        "counts": _counts(ranking.comparisons),
    }  # fmt: skip


def _mean_scores(ranking: Ranking) -> list[list[dict[str, Any]]]:
    """By candidate: its mean score in each dimension, over its judgements."""
    found: list[dict[str, list[float]]] = [defaultdict(list) for _ in ranking.order]
    for i, j, result in ranking.comparisons:
        if isinstance(result, Judgement):
            for name, (first, second) in result.scores.items():
                found[i][name].append(first)
                if j >= 0:
                    found[j][name].append(second)
    return [
        [{"dimension": name, "score": round(fmean(values), 4)} for name, values in of.items()]
        for of in found
    ]


def _counts(comparisons: Sequence[tuple[int, int, Judgement | Failure]]) -> dict[str, int]:
    counts: Counter[str] = Counter(judged=0, failed=0)
    for _, _, found in comparisons:
        for vote in found.votes:
            counts["votes"] += 1
            counts["readable"] += vote.answer > 0
            counts["first"] += vote.answer == (1 if vote.order == "given" else 2)
        if isinstance(found, Failure):
            counts.update({"failed": 1, f"failed: {found.reason}": 1})
        else:
            counts.update({
                "judged": 1, "consistent": int(found.consistent),
                "prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens,
            })  # fmt: skip
    return dict(counts)
