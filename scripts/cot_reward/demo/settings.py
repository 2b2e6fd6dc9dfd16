"""The settings of the demo: its toy world, and the base model that is trained for it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError, nearest
from cot_reward.settings import shipped
from cot_reward.tasks import TASKS, prompts

POOLS = ("cold_start", "rejection", "dpo", "validation", "heldout", "heldout_new")
# The settings that decide the data; the others say where it goes.
DATA_SETTINGS = ("seed", *POOLS, "close", "noise")


def refuse_negative(settings: Any) -> None:
    """Raise ValueError when a number in a settings dataclass is below 0."""
    for name, value in asdict(settings).items():
        if isinstance(value, int | float) and value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")


@dataclass(frozen=True)
class WorldSettings:
    """The pictures and comparisons that `make_demo.py` makes. Raises ValueError for a bad value."""

    out: Path = field(default=Path("dataset/demo"), metadata={"help": "folder of the data"})
    template: Path = field(
        default=Path("configs/demo/template.txt"), metadata={"help": "prompt with {caption}"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the data and of the base"})

    cold_start: int = field(default=300, metadata={"help": "rows with a teacher's CoT"})
    rejection: int = field(default=800, metadata={"help": "comparisons for stage 2"})
    dpo: int = field(default=1200, metadata={"help": "comparisons for stage 3"})
    validation: int = field(default=300, metadata={"help": "comparisons to choose settings on"})
    heldout: int = field(default=500, metadata={"help": "comparisons for the table"})
    heldout_new: int = field(
        default=250, metadata={"help": "more of them, of shades and sizes never trained together"}
    )
    close: float = field(
        default=0.7, metadata={"help": "share of comparisons whose totals differ by 1, not by 5"}
    )
    noise: float = field(
        default=110.0, metadata={"help": "standard deviation of the pixel noise, of 255"}
    )

    def __post_init__(self) -> None:
        refuse_negative(self)
        if self.close > 1:
            raise ValueError(f"close is {self.close:g}; a share is at most 1")

    @property
    def signature(self) -> dict[str, Any]:
        """The settings that decide the data, and the template's hash, for the data's summary."""
        chosen = {name: getattr(self, name) for name in DATA_SETTINGS}
        return chosen | {"template_hash": prompts.template_hash(self.read_template())}

    def read_template(self) -> str:
        """The prompt template's text. Raises UserError when it is missing or has no {caption}."""
        try:
            text = shipped(self.template).read_text(encoding="utf-8")
            prompts.check_template(text, TASKS["image_generation"])
        except OSError as error:
            raise UserError(f"{self.template}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{self.template}: {error}") from None
        return text


# The keys of `tiny_qwen.FAMILIES`, which takes seconds to import.
MODEL_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of the tiny model. Raises ValueError for a bad value."""

    hidden: int = field(default=128, metadata={"help": "width of the language model"})
    mlp: int = field(default=384, metadata={"help": "width of the language model's MLP"})
    layers: int = field(default=3, metadata={"help": "layers of the language model"})
    heads: int = field(default=4, metadata={"help": "attention heads of the language model"})
    kv_heads: int = field(default=2, metadata={"help": "key/value heads of the language model"})
    vision_hidden: int = field(default=64, metadata={"help": "width of the vision tower"})
    vision_mlp: int = field(default=128, metadata={"help": "width of the vision tower's MLP"})
    vision_layers: int = field(default=2, metadata={"help": "layers of the vision tower"})
    vision_heads: int = field(default=4, metadata={"help": "attention heads of the vision tower"})
    vocab: int = field(default=640, metadata={"help": "upper bound on the byte-pair tokens"})

    def __post_init__(self) -> None:
        refuse_negative(self)
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError("hidden must divide by 2 * heads, and heads by kv_heads")


@dataclass(frozen=True)
class BaseSettings(ModelSizes):
    """The base model: its sizes, and the training that stands in for its pre-training."""

    model_out: Path = field(default=Path("runs/demo/base"), metadata={"help": "base checkpoint"})
    family: str = field(
        default="qwen2_5_vl", metadata={"help": f"of the model: {', '.join(MODEL_FAMILIES)}"}
    )
    warmup_steps: int = field(default=600, metadata={"help": "upper bound on the text-only steps"})
    base_steps: int = field(default=1000, metadata={"help": "steps with pictures and sums"})
    base_noise: float = field(
        default=10.0, metadata={"help": "standard deviation of its pixel noise"}
    )
    batch: int = field(default=64, metadata={"help": "lessons in a step"})
    warmup_lr: float = field(default=2e-3, metadata={"help": "peak learning rate, text only"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate with pictures"})
    processes: int = field(default=2, metadata={"help": "training processes, one core each"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in MODEL_FAMILIES:
            close = nearest(self.family, MODEL_FAMILIES)
            raise ValueError(
                f"family {self.family}: not one of {', '.join(MODEL_FAMILIES)}.{close}"
            )
        if not self.processes or self.batch % self.processes:
            raise ValueError(f"batch {self.batch} does not divide by processes {self.processes}")

    def signature(self, world: WorldSettings) -> dict[str, Any]:
        """The settings that decide the base, and the template's hash, for the base's summary."""
        own = asdict(self)
        del own["model_out"]
        template_hash = prompts.template_hash(world.read_template())
        return {"seed": world.seed} | own | {"template_hash": template_hash}
