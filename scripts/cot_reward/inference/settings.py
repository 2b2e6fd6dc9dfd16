"""The settings of stage 2's inference: flags of the script and keys of its YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_reward.records import ORDERS, Order

# The SDK holds 1,000 connections at most, and a probe must find one free.
_MOST = 900


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
            self.concurrency.isdecimal() and 0 < int(self.concurrency) <= _MOST
        ):
            raise ValueError(
                f"--concurrency {self.concurrency}: a number from 1 to {_MOST}, or auto"
            )
        if "@" in self.base_url or "?" in self.base_url:
            # It is written to files and messages.
            raise ValueError(
                "--base-url must not hold a name, password or query; put the key into the "
                "environment variable that --api-key-env names"
            )

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else (self.orders,)
