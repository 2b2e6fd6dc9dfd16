"""The settings of inference: flags of the script and keys of its YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_reward.client import options
from cot_reward.client.address import check_address
from cot_reward.errors import nearest
from cot_reward.inference.ledger import Side
from cot_reward.judge import FINDINGS, TRUSTED
from cot_reward.records import ORDERS, Form, Order
from cot_reward.rows.file_flags import check_held_out_roots
from cot_reward.rows.labels import parse_meanings
from cot_reward.rows.reading import STDIN
from cot_reward.rows.shards import Shard

DEFAULT_URL = "http://127.0.0.1:8000/v1"

# What --until may wait for.
Until = Literal["off", "right,wrong", "right", "wrong"]
_SIDES: dict[str, frozenset[Side]] = {
    "off": frozenset(), "right": frozenset({"right"}), "wrong": frozenset({"wrong"}),
    "right,wrong": frozenset({"right", "wrong"}),
}  # fmt: skip


def _setting(text: str, *aliases: str, **default: Any) -> Any:
    return field(metadata={"help": text, "aliases": aliases}, **default)


@dataclass(frozen=True)
class InferenceSettings:
    data: list[Path] = _setting(
        "JSON, JSONL, Parquet files of labelled comparisons or judged rows; FILE@ROOT: with its "
        "image root; -: standard input"
    )
    out: Path = _setting("folder for the results; the same command continues a stopped run")
    adapter: str | None = _setting(
        "how rows are read (default: found from the rows)", "source", default=None
    )
    task: str | None = _setting("task of the records that do not name one", default=None)
    labels: list[str] = _setting(
        "what raw labels mean: VALUE=1, VALUE=2, VALUE=tie, VALUE=bad",
        default_factory=list,
    )
    template: list[str] = _setting(
        "prompt template file, or TASK=FILE (default: our own)",
        default_factory=list,
    )
    form: Form = _setting("what the prompt asks for", default="think")
    media_root: Path = _setting(
        "folder to which all written paths are relative", default=Path("dataset")
    )
    image_root: list[Path] = _setting(
        "folder of the raw rows' media paths: one for all files, or one for each (default: the "
        "media root, which judged rows always have)",
        default_factory=list,
    )
    exclude: list[str] = _setting(
        "held-out files or globs: comparisons that are never asked", default_factory=list
    )
    exclude_image_root: list[Path] = _setting(
        "the same for --exclude (default: --image-root, if it is one folder)",
        default_factory=list,
    )
    base_url: list[str] = _setting(
        f"address of the server, or of several (default: {DEFAULT_URL})", default_factory=list
    )
    servers: Path | None = _setting(
        "file of further addresses, one a line; may change while the run goes on", default=None
    )
    processes: int = _setting("processes that read media and send requests", default=1)
    model: str | None = _setting("model (default: the only one that is served)", default=None)
    api_key_env: str = _setting(
        "environment variable that holds the API key", default="OPENAI_API_KEY"
    )
    num_samples: int = _setting(
        "chains of thought per comparison and order, at most", "max_samples", default=4
    )
    temperature: float = _setting("sampling temperature; 0: greedy", default=1.0)
    top_p: float = _setting("nucleus sampling", default=1.0)
    max_tokens: int = _setting("maximum tokens of a chain of thought", default=2048)
    seed: int = _setting("seed of the run", default=0)
    sampling_defaults: Literal["neutral", "server"] = _setting(
        "top_k, min_p, penalties: neutral, or those of the served generation_config.json",
        default="neutral",
    )
    chat_template_kwargs: str | None = _setting(
        "arguments of the chat template, such as '{\"enable_thinking\": false}'", default=None
    )
    answer_probability: bool = _setting(
        "write the probability of each answer, by log-probs", default=False
    )
    structured_output: Literal["off", "on"] = _setting(
        "on: vLLM lets no text leave the form of --form", default="off"
    )
    orders: Literal["given", "swapped", "both"] = _setting("presentation orders", default="both")
    until: Until = _setting("ask in each order until such usable texts are there", default="off")
    first: int = _setting("with --until: samples of each round", default=2)
    until_coherence: list[str] = _setting(
        "with --until: findings of a usable text, as the merger takes them",
        default_factory=lambda: list(TRUSTED),
    )
    concurrency: str = _setting(
        "requests in flight at each server; auto: raised while tokens/s rise", default="auto"
    )
    media: Literal["inline", "file"] = _setting(
        "inline: in the request; file: file:// addresses",
        default="inline",
    )
    image_max_pixels: int = _setting("larger images are resized as in training", default=262144)
    timeout: float = _setting("seconds for one attempt", default=600.0)
    deadline: float = _setting("seconds for a request with all its attempts", default=3600.0)
    max_attempts: int = _setting("attempts per request", default=5)
    max_pause: float = _setting("seconds to wait for a server that is out", default=1800.0)
    shard: str | None = _setting(
        "I/N: only share I of N of the comparisons; scripts/gather.py joins them", default=None
    )
    limit: int | None = _setting("number of comparisons to read (default: all)", default=None)
    retry_failed: bool = _setting("ask again for what failed in earlier runs", default=False)
    max_bad_rows: float = _setting(
        "share of bad records above which nothing is asked", default=0.01
    )
    max_failed: float = _setting(
        "share of failures above which the exit code is not 0", default=0.1
    )
    min_parsed: float = _setting("smallest share of readable answers for exit code 0", default=0.5)
    any_weights: bool = _setting("go on with other weights under the same name", default=False)
    dry_run: bool = _setting("open the images, print counts, ask nothing", default=False)
    allow_incoherent: bool = _setting(
        "let right but contradicting texts into correct.jsonl", default=False
    )

    def __post_init__(self) -> None:
        parse_meanings(self.labels)
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                "--temperature 0 always gives the same text; use --num-samples 1, or sample"
            )
        if len(self.image_root) not in (0, 1, len(self.data)):
            raise ValueError(
                f"--image-root names {len(self.image_root)} folders for {len(self.data)} files of "
                "--data; give one for all files, or one for each in the same order"
            )
        check_held_out_roots(self.exclude, self.exclude_image_root)
        minima = {
            "num_samples": 1, "max_tokens": 1, "max_attempts": 1, "image_max_pixels": 1,
            "first": 1, "temperature": 0, "timeout": 0.001, "deadline": 0.001, "max_pause": 0,
            "top_p": 1e-9, "processes": 1,
        }  # fmt: skip
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {minimum}")
        for name in ("max_bad_rows", "max_failed", "min_parsed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1")
        self._check_until()
        _ = self.share
        if self.shard and self.limit is not None:
            raise ValueError("--limit and --shard: a share is one of all comparisons; drop --limit")
        if self.shard and STDIN in self.data:
            raise ValueError(
                "--shard needs files: gather.py reads the data again, '-' is gone then"
            )
        try:
            _ = self.template_kwargs
        except ValueError as error:
            raise ValueError(
                f"--chat-template-kwargs {self.chat_template_kwargs}: not a JSON object ({error})"
            ) from None
        try:
            _ = self.fixed_concurrency
        except ValueError as error:
            raise ValueError(f"--concurrency {self.concurrency}: {error}") from None
        for address in self.base_url:
            try:
                check_address(address)
            except ValueError as error:
                raise ValueError(f"--base-url: {error}") from None

    def _check_until(self) -> None:
        """Raises ValueError."""
        if self.until != "off" and self.first >= self.num_samples:
            raise ValueError(
                f"--until {self.until}: a first round of --first {self.first} is already all of "
                f"--num-samples {self.num_samples}; give a smaller --first, a larger "
                "--num-samples, or --until off"
            )
        for finding in self.until_coherence:
            if finding not in FINDINGS:
                raise ValueError(
                    f"--until-coherence {finding}: no finding.{nearest(finding, FINDINGS)}"
                )

    @property
    def share(self) -> Shard | None:
        """The comparisons that are asked; None: all. Raises ValueError."""
        try:
            return Shard.parse(self.shard) if self.shard else None
        except ValueError as error:
            raise ValueError(f"--shard: {error}") from None

    @property
    def addresses(self) -> list[str]:
        """The servers that are named by flags."""
        return self.base_url or ([] if self.servers else [DEFAULT_URL])

    @property
    def wanted_sides(self) -> frozenset[Side]:
        """What --until waits for; empty: every sample is asked."""
        return _SIDES[self.until]

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The arguments of the chat template. Raises ValueError."""
        return options.template_kwargs(self.chat_template_kwargs)

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else (self.orders,)

    @property
    def units_per_record(self) -> int:
        """Responses that a record stands for: one per order and sample."""
        return len(self.asked_orders) * self.num_samples

    @property
    def fixed_concurrency(self) -> int | None:
        """Requests in flight; None for auto."""
        return options.fixed_concurrency(self.concurrency)
