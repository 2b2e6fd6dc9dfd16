"""GRPO itself: train, save, merge the adapter, plot, write the card, and the summary last."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import ModelConfig

from cot_reward.grpo.card import FinishedRun, model_card
from cot_reward.grpo.questions import Questions
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.grpo.steps import announce, count_steps
from cot_reward.grpo.trainer import JudgedTrainer
from cot_reward.plotting import LogPlot, Panel, plot_log
from cot_reward.provenance import versions
from cot_reward.store import write_text_file
from cot_reward.tasks.prompts import TEMPLATE_FILE
from cot_reward.training import identity
from cot_reward.training.card_parts import masked_command
from cot_reward.training.distributed import broadcast_from_main
from cot_reward.training.ending import FirstStep, how_to_go_on, last_values, save_model
from cot_reward.training.lora import merge_adapter

_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets", "vllm")


class _StopAfter(TrainerCallback):
    """Ends the training after so many minutes: the step that is under way then is the last."""

    def __init__(self, minutes: float) -> None:
        self._seconds, self._started = minutes * 60, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        is_over = time.monotonic() - self._started >= self._seconds
        # One process decides, since clocks differ and all must stop at the same step.
        if broadcast_from_main(lambda: is_over):
            control.should_training_stop = True


def train(
    trainer: JudgedTrainer,
    settings: GrpoSettings,
    training: Any,
    model_config: ModelConfig,
    questions: Questions,
) -> None:
    """Train, then write into `output_dir`: model, processor, state, curves, card, summary.json."""
    output = Path(str(training.output_dir))
    count = len(questions.rows)
    is_main = trainer.is_world_process_zero()
    if is_main:
        identity.claim(trainer.record, output, settings.overwrite_output_dir)
        announce(training, count)
    started = time.monotonic()
    first = FirstStep()
    trainer.add_callback(first)
    if settings.max_minutes is not None:
        trainer.add_callback(_StopAfter(settings.max_minutes))
    try:
        result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    except KeyboardInterrupt:
        if is_main:
            print(how_to_go_on(output, trainer.state.global_step), file=sys.stderr)
        raise
    steps, history = trainer.state.global_step, trainer.state.log_history
    train_seconds = result.metrics["train_runtime"]
    if is_main:
        finished = FinishedRun(
            steps,
            count_steps(training, count),
            train_seconds,
            training.world_size,
            history,
            sys.argv,
        )
        card = model_card(settings, training, model_config, questions, finished)
        # Before the model, since saving may upload the folder.
        write_text_file(output / "README.md", card)
    trainer.restore_tokenizer()
    save_model(trainer, output / "adapter" if settings.merge_adapter else output)
    if not is_main:
        return
    if settings.merge_adapter:
        name, kwargs = str(model_config.model_name_or_path), training.model_init_kwargs or {}
        merge_adapter(output, name, kwargs)
        trainer.processing_class.save_pretrained(output)
    # The file has room for one prompt.
    if len(templates := set(questions.templates.values())) == 1:
        write_text_file(output / TEMPLATE_FILE, templates.pop() + "\n")
    # PEFT, when it saves an adapter, replaces tags and base in the card.
    write_text_file(output / "README.md", card)
    for plot in _plots():
        plot_log(history, plot.panels, output / "curves" / f"{plot.name}.png", plot.title)
    made = steps - first.step
    # Texts are sampled once for so many steps.
    reuse = training.num_iterations * training.steps_per_generation
    rounds = made * training.gradient_accumulation_steps / reuse
    summary = {
        "stage": "grpo",
        "rows": {
            "questions": count,
            "skipped": {"bad": len(questions.problems)} if questions.problems else {},
            "ties": questions.ties,
            "repeated": questions.repeated,
        },
        "steps": steps,
        "texts": math.ceil(rounds) * finished.planned.at_once * finished.planned.texts,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(train_seconds, 2),
        "seconds_per_step": round(train_seconds / max(made, 1), 4),
        "metrics": last_values(history),
        "settings": {
            **dataclasses.asdict(settings),
            **dataclasses.asdict(model_config),
            **training.to_dict(),
        },
        "command": masked_command([sys.executable, *sys.argv]),
        "versions": versions(*_PACKAGES),
    }
    write_text_file(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(
        f"{steps} steps in {train_seconds:.0f} s; model, card, curves and summary are in {output}"
    )


def _plots() -> list[LogPlot]:
    """The curves of a run: rewards, the questions that teach, lengths, and the drift."""

    def share(label: str, key: str) -> Panel:
        return Panel(label, {key: label}, limits=(-0.03, 1.03))

    return [
        LogPlot(
            "rewards",
            "GRPO: rewards of the sampled texts",
            [
                share("right and coherent", "rewards/judged/mean"),
                share("well-formed", "rewards/well_formed/mean"),
                share("questions of one reward", "frac_reward_zero_std"),
            ],
        ),
        LogPlot(
            "texts",
            "GRPO: the sampled texts",
            [
                Panel("tokens of a text", {"completions/mean_length": "mean"}),
                share("cut texts", "completions/clipped_ratio"),
                Panel("entropy of a token", {"entropy": "mean"}),
                Panel("KL from the base", {"kl": "mean"}),
            ],
        ),
    ]
