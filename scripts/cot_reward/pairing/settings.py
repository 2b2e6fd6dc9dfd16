"""The settings of the merger and of the audit: flags, and keys of YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cot_reward.errors import nearest
from cot_reward.judge import FINDINGS, TRUSTED
from cot_reward.rows.file_flags import check_held_out_roots
from cot_reward.rows.preference_forms import WrittenForm
from cot_reward.rows.shards import Shard

# A rejected text may have a wrong answer, no readable answer, or a right answer that its own totals
# contradict.
REJECTED_KINDS = ("incorrect", "unparsed", "incoherent")

PairFrom = Literal["prefer-same-model", "same-model", "published", "both", "any"]
# --same-model -> --pair-from
_OLDER_WORDS: dict[str, PairFrom] = {
    "prefer": "prefer-same-model", "require": "same-model", "off": "any",
}  # fmt: skip


@dataclass(frozen=True)
class MergeSettings:
    correct: list[str] = field(metadata={"help": "files or globs of correct responses"})
    incorrect: list[str] = field(metadata={"help": "files or globs of incorrect responses"})
    out: Path = field(metadata={"help": "folder for train.jsonl, eval.jsonl and summary.json"})
    exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "held-out files: no pair may be about their comparisons"},
    )
    media_root: Path = field(
        default=Path("dataset"), metadata={"help": "media paths in rows are relative to it"}
    )
    image_root: Path | None = field(
        default=None,
        metadata={"help": "the same for published and raw rows (default: the media root)"},
    )
    exclude_image_root: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "the same for --exclude: one folder for all its files, or one for each "
            "(default: --image-root)"
        },
    )
    chosen_coherence: list[str] = field(
        default_factory=lambda: list(TRUSTED),
        metadata={"help": "findings that a chosen text may have"},
    )
    allow_incoherent: bool = field(
        default=False, metadata={"help": "chosen texts with any finding"}
    )
    rejected_kinds: list[str] = field(
        default_factory=lambda: ["incorrect"],
        metadata={"help": f"what a rejected text may be: {', '.join(REJECTED_KINDS)}"},
    )
    rejected_coherence: list[str] = field(
        default_factory=lambda: list(FINDINGS),
        metadata={"help": "findings that a rejected text with a wrong answer may have"},
    )
    pair_from: PairFrom | None = field(
        default=None,
        metadata={
            "help": "whose texts are in a pair (default: prefer-same-model). published: chosen by "
            "the trained model, rejected by another one. both: such pairs and those of one model"
        },
    )
    published_share: float | None = field(
        default=None,
        metadata={"help": "with --pair-from both: share of published pairs (default: any)"},
    )
    trained_model: str | None = field(
        default=None,
        metadata={"help": "the model that is trained next (default: the only one in --correct)"},
    )
    same_model: Literal["prefer", "require", "off"] | None = field(
        default=None, metadata={"help": "an older way to say --pair-from"}
    )
    max_similarity: float = field(
        default=0.98,
        metadata={"help": "more similar texts make no pair (1: equal words; 0: no word in common)"},
    )
    pairs_per_comparison: int = field(default=1, metadata={"help": "at most, both orders together"})
    chosen_uses: int = field(
        default=2, metadata={"help": "pairs that a chosen text may be in (0: unlimited)"}
    )
    rejected_uses: int = field(default=1, metadata={"help": "pairs that a rejected text may be in"})
    select: Literal["closest-text", "closest-length", "random", "hardest", "all"] = field(
        default="closest-text",
        metadata={
            "help": "which pairs of a comparison are taken; hardest: by the texts' own totals"
        },
    )
    pass_rate: list[float] = field(
        default_factory=list,
        metadata={"help": "LOW HIGH: only comparisons with this share of right samples, 0 to 1"},
    )
    balance_positions: bool = field(
        default=True, metadata={"help": "as many chosen answers 1 as 2"}
    )
    balance_lengths: bool = field(
        default=False,
        metadata={
            "help": "chosen as often longer as rejected; with several pairs a comparison the best "
            "choice of all where 10,000 pairs are possible at most"
        },
    )
    source_weights: list[str] = field(
        default_factory=list,
        metadata={"help": "SOURCE=WEIGHT ...: shares of the pairs (default: 1 each; 0: none)"},
    )
    eval_fraction: float = field(
        default=0.0, metadata={"help": "share of the comparisons that go to eval.jsonl"}
    )
    shard: str | None = field(
        default=None,
        metadata={
            "help": "I/N: only the comparisons of share I of N, so that N machines merge the same "
            "input (then --join)"
        },
    )
    form: WrittenForm = field(
        default="ours",
        metadata={
            "help": "of the rows of train.jsonl and eval.jsonl: this project's, or another "
            "trainer's (dataset/README.md)"
        },
    )
    plots: bool = field(default=False, metadata={"help": "draw OUT/plots/*.png"})
    max_bad_rows: float = field(
        default=0.01, metadata={"help": "share of bad rows above which the merge fails"}
    )
    memory: str = field(
        default="500MB",
        metadata={"help": "memory of the database; the rest goes to disk"},
    )
    workers: int = field(default=0, metadata={"help": "processes (0: one a core)"})
    seed: int = field(default=0, metadata={"help": "of every random choice"})

    def __post_init__(self) -> None:
        if self.pairs_per_comparison < 1:
            raise ValueError("--pairs-per-comparison must be at least 1")
        if self.select == "all" and self.pairs_per_comparison > 1:
            raise ValueError(
                f"--select all takes every pair, not --pairs-per-comparison "
                f"{self.pairs_per_comparison}; leave out one of the two"
            )
        for flag, number in (
            ("--workers", self.workers),
            ("--chosen-uses", self.chosen_uses),
            ("--rejected-uses", self.rejected_uses),
        ):
            if number < 0:
                raise ValueError(f"{flag} must be 0 or more")
        _check_seed(self.seed)
        check_held_out_roots(self.exclude, self.exclude_image_root)
        for flag, value, high in (
            ("--max-similarity", self.max_similarity, 1),
            ("--eval-fraction", self.eval_fraction, 0.9),
            ("--max-bad-rows", self.max_bad_rows, 1),
        ):
            if not 0 <= value <= high:
                raise ValueError(f"{flag} must be between 0 and {high}, not {value}")
        for flag, chosen, known in (
            ("--chosen-coherence", self.chosen_coherence, FINDINGS),
            ("--rejected-coherence", self.rejected_coherence, FINDINGS),
            ("--rejected-kinds", self.rejected_kinds, REJECTED_KINDS),
        ):
            for name in chosen:
                if name not in known:
                    raise ValueError(
                        f"{flag}: '{name}' is none of {', '.join(known)}.{nearest(name, known)}"
                    )
        if self.published_share is not None and not 0 < self.published_share < 1:
            raise ValueError(
                f"--published-share must be between 0 and 1, not {self.published_share}; for pairs "
                "of one kind alone use --pair-from same-model or published"
            )
        older = _OLDER_WORDS.get(self.same_model or "")
        if older and self.pair_from and older != self.pair_from:
            raise ValueError(
                f"--same-model {self.same_model} says --pair-from {older}, but --pair-from is "
                f"{self.pair_from}; keep one"
            )
        if self.published_share is not None and self.pairs != "both":
            raise ValueError("--published-share goes with --pair-from both")
        if self.pairs == "both" and self.balance_lengths:
            raise ValueError("--balance-lengths does not go with --pair-from both")
        rates = self.pass_rate
        if rates and not (len(rates) == 2 and 0 <= rates[0] <= rates[1] <= 1):
            raise ValueError(f"--pass-rate takes LOW and HIGH between 0 and 1, not {rates}")
        self.weights()
        self._check_shard()

    def _check_shard(self) -> None:
        """Raise ValueError for what one share of the comparisons cannot know of the others."""
        if self.share is None:
            return
        if self.eval_fraction:
            raise ValueError(
                "--eval-fraction does not go with --shard: comparisons that share a picture or a "
                "caption stay together, and a share does not see those of the others; hold other "
                "data out (--exclude)"
            )
        for flag, value, of in (
            ("--source-weights", self.source_weights, "a source"),
            ("--published-share", self.published_share, "a kind of pairs"),
        ):
            if value:
                raise ValueError(
                    f"{flag} does not go with --shard: a share may have few pairs of {of} or none, "
                    "and the mix of all shares would not be the one that is asked for; leave it "
                    "out, or merge everything on one machine"
                )
        if self.form != "ours":
            raise ValueError(
                f"--form {self.form} does not go with --shard: give it to --join, which puts the "
                "shares together by the keys of this project's rows"
            )
        if self.pairs in ("published", "both") and self.trained_model is None:
            raise ValueError(
                f"--pair-from {self.pairs} with --shard needs --trained-model: a share may not "
                "have the texts of all models"
            )

    @property
    def share(self) -> Shard | None:
        """The share of `shard`. Raises ValueError for a text that names none."""
        return Shard.parse(self.shard) if self.shard is not None else None

    @property
    def pairs(self) -> PairFrom:
        """Whose texts are in a pair, by either way to say it."""
        return self.pair_from or _OLDER_WORDS.get(self.same_model or "", "prefer-same-model")

    def weights(self) -> dict[str, float]:
        """The weights by source. Raises ValueError for an entry that is no SOURCE=WEIGHT."""
        weights = {}
        for entry in self.source_weights:
            name, _, number = entry.rpartition("=")
            try:
                weights[name] = float(number)
            except ValueError:
                weights[name] = -1.0
            in_range = weights[name] == 0 or 1e-6 <= weights[name] <= 1e6
            if "=" not in entry or not in_range:
                raise ValueError(
                    f"--source-weights takes SOURCE=WEIGHT, 0 or from 1e-6 to 1e6, not {entry!r}"
                )
        return weights


@dataclass(frozen=True)
class JoinSettings:
    join: list[Path] = field(
        metadata={"help": "the folders of all shares (--shard 1/N to N/N) of one merge"}
    )
    out: Path = field(metadata={"help": "folder for train.jsonl and summary.json"})
    form: WrittenForm = field(default="ours", metadata={"help": "of the rows of train.jsonl"})


@dataclass(frozen=True)
class AuditSettings:
    files: list[Path] = field(
        metadata={
            "help": "file of DPO rows, ours or another project's",
            "positional": True,
            "aliases": ["report"],
        }
    )
    json: bool = field(default=False, metadata={"help": "print JSON"})
    seed: int = field(
        default=0,
        metadata={"help": "of the classifiers' folds, and of their sample of a large file"},
    )

    def __post_init__(self) -> None:
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be 0 or more and below 2**32, not {seed}")
