"""Build GRPO's trainer: the model, its trained and frozen parts, its rewards."""

from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.grpo.questions import Questions
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.grpo.steps import count_steps
from cot_reward.grpo.trainer import JudgedTrainer
from cot_reward.training import identity, lora
from cot_reward.training.distributed import broadcast_from_main, print_once
from cot_reward.training.model import (
    check_saves_weights,
    engine,
    freeze,
    frozen_parts,
    load_config,
    load_processor,
    loading_arguments,
    peft_config,
    pin_model,
)


def build_trainer(
    settings: GrpoSettings,
    training: Any,
    model_config: ModelConfig,
    train: Questions,
    held_out: Questions | None = None,
) -> JudgedTrainer:
    """The trainer with model and processor, for the questions of `load`.

    A branch of the hub becomes its present commit in `model_config`. Raises UserError for a model
    that cannot be trained as asked, and for an output folder or a checkpoint of another run.
    """
    name = str(model_config.model_name_or_path)
    total_steps = count_steps(training, len(train.rows)).total
    record = identity.describe(
        settings,
        training,
        model_config,
        row_digests=train.digests,
        model=pin_model(training, model_config),
        engine=engine(training),
    )
    line = broadcast_from_main(
        lambda: identity.check(
            record,
            Path(str(training.output_dir)),
            training.resume_from_checkpoint,
            settings.overwrite_output_dir,
            total_steps,
        )
    )
    if line:
        print_once(line)
    training.model_init_kwargs = loading_arguments(training, model_config)
    processor = load_processor(training, model_config)
    config = load_config(training, model_config)
    lora.check_quantized_model(name, config, model_config.use_peft, settings.merge_adapter)
    check_saves_weights(training.deepspeed_plugin)
    frozen = frozen_parts(settings)
    trainer = JudgedTrainer(
        record=record,
        settings=settings,
        model=name,
        args=training,
        train_dataset=train.dataset(),
        eval_dataset=held_out and held_out.dataset(),
        processing_class=processor,
        quantization_config=lora.quantization(model_config),
        peft_config=peft_config(model_config, frozen),
    )
    freeze(trainer.model, frozen)
    lora.keep_fp32_beside_quantized(trainer.model, training)
    return trainer
