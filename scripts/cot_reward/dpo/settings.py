"""The flags and YAML keys of stage 3: TRL's own, and those of this script."""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import IntervalStrategy
from trl import DPOConfig, ModelConfig, TrlParser

from cot_reward.errors import UserError, nearest
from cot_reward.settings import read_yaml


@dataclass
class ScriptArguments:
    """What TRL's dataclasses do not have."""

    data_path: str = field(
        metadata={"help": "DPO rows to train on: JSON Lines, or one JSON list."},
    )
    eval_data_path: str | None = field(
        default=None, metadata={"help": "DPO rows to evaluate on, see --eval_strategy."}
    )
    image_folder: str = field(
        default="dataset", metadata={"help": "The folder that the rows' image paths start from."}
    )
    image_max_pixels: int = field(
        default=262144,
        metadata={
            "help": "Images with more pixels are resized to this many, as in SFT and inference."
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Train on the rows that can be used, and count the others."},
    )
    shared_prefix: bool = field(
        default=True,
        metadata={
            "help": "Run the prompt of a pair once, not four times. Off: TRL's own forward and "
            "batches, with a live reference."
        },
    )
    reference_cache: bool = field(
        default=True,
        metadata={
            "help": "Compute reference log-probs once, before training, and keep them on disk. "
            "Off: a reference model runs beside the policy."
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where they are kept; none: reference_cache beside the output_dir."},
    )
    merge_adapter: bool = field(
        default=False,
        metadata={
            "help": "With LoRA: write the merged model into output_dir, the adapter below it."
        },
    )
    freeze_vision_tower: bool = field(
        default=True, metadata={"help": "Do not train the vision tower."}
    )
    freeze_multi_modal_projector: bool = field(
        default=True,
        metadata={"help": "Do not train the projector between vision tower and text model."},
    )

    def __post_init__(self) -> None:
        if self.image_max_pixels < 1:
            raise ValueError(f"image_max_pixels is {self.image_max_pixels}; it must be positive")
        # Stock TRL is meant, and that refuses to precompute anything for vision models.
        self.reference_cache = self.reference_cache and self.shared_prefix


@dataclass
class PairConfig(DPOConfig):
    """TRL's DPOConfig, save for three defaults.

    No chain of thought is cut: rewards come from the answer at a text's very end, so TRL's 1,024
    tokens would silently train on pairs whose two texts no longer differ in what matters. The best
    checkpoint is the one with the best reward accuracy. TensorBoard's files are written.
    """

    max_length: int | None = field(
        default=None,
        metadata={"help": "Rows with more tokens are bad ones, since they would be cut."},
    )
    # In this order the flag takes a string: transformers' parser looks at the second type.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard",
        metadata={"help": "Where the log goes: tensorboard, wandb, both, or none."},
    )
    metric_for_best_model: str | None = field(
        default="eval_rewards/accuracies",
        metadata={"help": "What --load_best_model_at_end goes by; transformers': the loss."},
    )


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(
    argv: Sequence[str] | None = None,
) -> tuple[ScriptArguments, PairConfig, ModelConfig]:
    """The settings from `--config FILE.yaml` and flags; flags win.

    Raises UserError for an unknown key or flag, naming the nearest valid one, and for values that
    TRL or transformers refuse.
    """
    kinds: Any = (ScriptArguments, PairConfig, ModelConfig)
    parser = _Parser(kinds, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file of these settings")
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = _config_path(arguments)
    names = {action.dest for action in parser._actions} - {"help", "config"}
    if path is not None:
        parser.set_defaults_with_config(**read_yaml(path, sorted(names)))
    # TRL's own default sets the key that this is about; a user cannot act on it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
    try:
        script, training, model, _, unknown = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"unexpected argument '{flag}'")
        options = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown flag '{flag}'.{nearest(flag, options)}")
    if not model.model_name_or_path:
        raise UserError("--model_name_or_path is needed (or 'model_name_or_path' in YAML)")
    _check_together(script, training, model)
    training.resume_from_checkpoint = _checkpoint(training)
    return script, training, model


def _check_together(script: ScriptArguments, training: PairConfig, model: ModelConfig) -> None:
    """Raise UserError for settings that cannot go together, before anything is loaded."""
    if script.eval_data_path:
        if training.eval_strategy == "no":
            training.eval_strategy = IntervalStrategy.EPOCH
    elif training.eval_strategy != "no":
        raise UserError(f"--eval_strategy {training.eval_strategy.value} needs --eval_data_path")
    if script.merge_adapter and not model.use_peft:
        raise UserError("--merge_adapter needs --use_peft: without an adapter nothing is merged")
    if training.precompute_ref_log_probs:
        raise UserError(
            "--precompute_ref_log_probs is TRL's, and not for images; --reference_cache does it, "
            "and is on"
        )
    if "token" in (training.model_init_kwargs or {}):
        raise UserError(
            "model_init_kwargs: a token would stand in summary.json; give it by the environment, "
            "as HF_TOKEN"
        )
    if training.sync_ref_model and script.reference_cache:
        raise UserError(
            "--sync_ref_model changes the reference while it trains; it needs "
            "--reference_cache false"
        )


def _config_path(arguments: Sequence[str]) -> Path | None:
    """The file named by `--config FILE` or `--config=FILE`; the last one counts."""
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config":
            if position + 1 == len(arguments):
                raise UserError("argument --config: expected one argument")
            path = arguments[position + 1]
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
    return None if path is None else Path(path)


def _checkpoint(training: PairConfig) -> str | None:
    """The checkpoint to resume from: of `true` the newest whole one of the output folder.

    A run that was killed while it saved leaves half of one; `trainer_state.json` is written last.
    Raises UserError when there is none.
    """
    given = str(training.resume_from_checkpoint or "")
    if given.lower() in ("", "false", "none"):
        return None
    if given.lower() != "true":
        if not _is_complete(Path(given)):
            raise UserError(f"--resume_from_checkpoint {given}: is no whole checkpoint")
        return given
    output = Path(str(training.output_dir))
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in output.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and _is_complete(path)
    }
    if not found:
        raise UserError(
            f"--resume_from_checkpoint true: there is no checkpoint in {output}; leave the flag out"
        )
    return str(found[max(found)])


def _is_complete(folder: Path) -> bool:
    try:
        return "global_step" in json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
