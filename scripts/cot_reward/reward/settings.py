"""What a reward model can be told: the arguments of RewardModel, and flags of scripts/score.py."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from cot_reward.client import options
from cot_reward.client.address import check_address
from cot_reward.errors import UserError, nearest
from cot_reward.records import ORDERS, Form, Order
from cot_reward.settings import setting
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import check_template, read_templates


@dataclass(frozen=True)
class RewardSettings:
    """Raises ValueError for values that cannot be used."""

    base_url: list[str] = setting(
        "address of the server, or of several", ["http://127.0.0.1:8000/v1"]
    )
    model: str | None = setting("model (default: the only one that is served)")
    template: Path | None = setting("prompt template file (default: our own)")
    task: str = setting("what is compared: " + ", ".join(TASKS), "image_generation")
    form: Form = setting("what the prompt asks for", "think")
    votes: int = setting("texts for each comparison and order", 1)
    temperature: float | None = setting("sampling temperature (default: 0 for one vote, else 1)")
    orders: Literal["given", "swapped", "both"] = setting("presentation orders", "both")
    max_tokens: int = setting("maximum tokens of a text", 2048)
    seed: int = setting("seed of the texts, and of the schedule of a ranking", 0)
    sampling_defaults: Literal["neutral", "server"] = setting(
        "top_k, min_p, penalties: neutral, or those of the served generation_config.json", "neutral"
    )
    chat_template_kwargs: str | None = setting(
        "arguments of the chat template, such as '{\"enable_thinking\": false}'"
    )
    image_max_pixels: int = setting("larger images are resized as in training", 262144)
    concurrency: str = setting("requests in flight; auto: raised while tokens/s rise", "auto")
    timeout: float = setting("seconds for one attempt", 600.0)
    deadline: float = setting("seconds for a request with all its attempts", 3600.0)
    max_attempts: int = setting("attempts per request", 5)
    max_pause: float = setting("seconds to wait for a server that is out", 1800.0)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r}: there is none.{nearest(self.task, TASKS)}")
        if self.form not in ("think", "json", "answer"):
            raise ValueError(f"form {self.form!r}: it is think, json or answer")
        if self.orders not in ("given", "swapped", "both"):
            raise ValueError(f"orders {self.orders!r}: it is given, swapped or both")
        if self.sampling_defaults not in ("neutral", "server"):
            raise ValueError(f"sampling_defaults {self.sampling_defaults!r}: neutral or server")
        minima = {
            "votes": 1, "max_tokens": 1, "max_attempts": 1, "image_max_pixels": 1,
            "timeout": 0.001, "deadline": 0.001, "max_pause": 0,
        }  # fmt: skip
        for name, minimum in minima.items():
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)!r}")
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature!r}")
        if self.temperature == 0 and self.votes > 1:
            raise ValueError("temperature 0 always gives the same text; use one vote, or sample")
        try:
            _ = self.fixed_concurrency
        except ValueError as error:
            raise ValueError(f"concurrency {self.concurrency}: {error}") from None
        try:
            _ = self.template_kwargs
        except ValueError as error:
            raise ValueError(
                f"chat_template_kwargs {self.chat_template_kwargs}: not a JSON object ({error})"
            ) from None
        if not self.base_url:
            raise ValueError("base_url names no server")
        for url in self.base_url:
            check_address(url)

    def template_text(self) -> str:
        """The prompt's template. Raises UserError for one that cannot be used."""
        files = [] if self.template is None else [str(self.template)]
        text = read_templates(files, self.form)[self.task]
        try:
            check_template(text, TASKS[self.task])
        except ValueError as error:
            raise UserError(f"{self.template}: {error}") from None
        return text

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The arguments of the chat template. Raises ValueError."""
        return options.template_kwargs(self.chat_template_kwargs)

    @property
    def temperature_used(self) -> float:
        """The temperature of the requests."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.votes == 1 else 1.0

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return ORDERS if self.orders == "both" else (self.orders,)

    @property
    def fixed_concurrency(self) -> int | None:
        """Requests in flight; None for auto."""
        return options.fixed_concurrency(self.concurrency)


@dataclass(frozen=True)
class ScoreSettings:
    """Raises ValueError for values that cannot be used."""

    data: Path = setting("JSON, JSONL or Parquet file: a row a prompt; -: standard input", MISSING)
    out: Path = setting("folder for the results; the same command continues a stopped run", MISSING)
    candidates: Path | None = setting(
        "folder with a folder of candidates for each prompt, named by its id (default: rows have "
        "`candidates`)"
    )
    root: Path | None = setting(
        "folder of the paths in rows, which they cannot leave (default: that of --data)"
    )
    reference: bool = setting("compare each candidate with the row's `reference` alone", False)
    max_comparisons: int | None = setting("pairs of a prompt at most (default: all)")
    limit: int | None = setting("number of prompts to read (default: all)")
    retry_failed: bool = setting("ask again for what failed in earlier runs", False)
    max_bad_rows: float = setting("share of bad rows above which nothing is asked", 0.01)
    max_failed: float = setting("share of failed comparisons above which the exit code is 3", 0.1)
    min_parsed: float = setting("smallest share of readable texts for exit code 0", 0.5)
    any_weights: bool = setting("go on with other weights under the same name", False)
    api_key_env: str = setting("environment variable that holds the API key", "OPENAI_API_KEY")

    def __post_init__(self) -> None:
        for name in ("max_bad_rows", "max_failed", "min_parsed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1")
        for name in ("max_comparisons", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
        if self.root is None and str(self.data) == "-":
            raise ValueError("--data - needs --root, the folder of the paths in its rows")

    @property
    def rows_root(self) -> Path:
        return self.data.parent if self.root is None else self.root
