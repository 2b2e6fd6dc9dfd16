"""The folders of the shares below --out: how they were cut, and what is finished of them.

shares/plan.json      the number of shares, the settings, the sizes and times of the data files,
                      whether all shares were joined since
shares/client.yaml    the settings of every share's client (--config)
shares/share-3/       the folder of a plain run with --shard 3/N
shares/share-3.log    what this client wrote
shares/driver.lock    held by the command that works here
"""

import secrets
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from cot_reward.errors import UserError
from cot_reward.inference.gather import OF_ONE_RUN
from cot_reward.inference.settings import InferenceSettings
from cot_reward.provenance import jsonable
from cot_reward.rows.file_flags import data_files, matching_files
from cot_reward.store import lock, read_json, write_json, write_text_file

SHARES_PER_WORKER = 4
# With fewer comparisons a share, the start of its client costs more than it gains.
COMPARISONS_PER_SHARE = 50
# How a share is asked, and not what it holds: its folder may have been asked otherwise.
_HOW = tuple(name for name in OF_ONE_RUN if name != "retry_failed")


class Plan:
    """The shares of a run into `settings.out`. Use in a `with` block: it holds the folder's lock.

    `token` is in the lock's file: by it a worker on another machine sees that it has the same
    folder. Raises UserError when another command works in the folder.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self.settings, self.count = settings, 0
        self.folder = settings.out / "shares"
        self.config = self.folder / "client.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "driver.lock"
        self._lock = path.open("a+", encoding="utf-8")
        lock(self._lock, path, "another infer_ray.py works in this folder", "an --out")
        self.token = secrets.token_hex(8)
        self._lock.truncate(0)
        self._lock.write(self.token)
        self._lock.flush()

    def cut(self, wanted: int | None, workers: int, comparisons: int) -> list[int]:
        """Settle the number of shares; returns those that are not finished.

        A number that was settled before stays. When the settings or the data have changed since,
        no share counts as finished: its client asks what is missing. With --retry-failed, after
        everything was gathered, shares with failures do not. Raises UserError for another number
        than before.
        """
        path = self.folder / "plan.json"
        previous = read_json(path)
        before, gathered = previous.get("shares"), previous.pop("gathered", False)
        if before and wanted and wanted != before:
            raise UserError(
                f"{self.folder} has {before} shares, and --shares is {wanted}; leave --shares out, "
                "or use another --out"
            )
        most = min(SHARES_PER_WORKER * workers, comparisons // COMPARISONS_PER_SHARE)
        self.count = before or wanted or max(1, most)
        plan = {"shares": self.count, "settings": self._asked(), "files": self._files()}
        # Until then the same command goes on with the retry that it has begun.
        retries = gathered and self.settings.retry_failed
        if plan != previous or retries:
            # Before the plan: a start that is killed between the two finds no share finished.
            for number in self.numbers:
                if plan != previous or self._has_failures(number):
                    self._summary(number).unlink(missing_ok=True)
            write_json(path, plan)
        self._write_config()
        return [number for number in self.numbers if not self._summary(number).exists()]

    def gathered(self) -> None:
        """Remember that everything was asked and joined: a retry that comes now is a new one."""
        path = self.folder / "plan.json"
        write_json(path, read_json(path) | {"gathered": True})

    def _summary(self, number: int) -> Path:
        return self.share(number) / "summary.json"

    def _has_failures(self, number: int) -> bool:
        account = read_json(self._summary(number)).get("account")
        return not isinstance(account, dict) or account.get("failed") != 0

    @property
    def numbers(self) -> range:
        return range(1, self.count + 1)

    def share(self, number: int) -> Path:
        return self.folder / f"share-{number}"

    def _asked(self) -> dict[str, Any]:
        every: dict[str, Any] = jsonable(asdict(self.settings))
        return {name: value for name, value in every.items() if name not in _HOW}

    def _files(self) -> dict[str, list[int]]:
        files = [file.path for file in data_files(self.settings.data, self.settings.image_root)]
        files += [path for name in self.settings.exclude for path in matching_files(name, "")]
        stats = {str(path): path.stat() for path in files}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def _write_config(self) -> None:
        every = jsonable(asdict(self.settings))
        values = {
            name: value
            for name, value in every.items()
            if value is not None and name not in ("out", "shard", "dry_run")
        }
        write_text_file(self.config, yaml.safe_dump(values, allow_unicode=True))

    def __enter__(self) -> "Plan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()


class Growth:
    """How many lines the journals of the shares have. A driver that starts again sees them all."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lines = dict.fromkeys(plan.numbers, 0)
        self._offsets = dict.fromkeys(plan.numbers, 0)

    def lines(self, share: int) -> int:
        """The lines of a share's journal now. Each is a response, or a request that failed."""
        try:
            with (self._plan.share(share) / "journal.jsonl").open("rb") as file:
                file.seek(self._offsets[share])
                # A torn last line does not count; the next start of the share cuts it off.
                while (block := file.read(2**24)) and (end := block.rfind(b"\n") + 1):
                    self._lines[share] += block.count(b"\n")
                    self._offsets[share] += end
                    file.seek(self._offsets[share])
        except FileNotFoundError:
            pass
        return self._lines[share]

    @property
    def total(self) -> int:
        """What `lines` has found so far."""
        return sum(self._lines.values())
