"""Stage 3: direct preference optimization on a model's own chains of thought.

    accelerate launch scripts/DPO_VL.py --config configs/dpo.yaml

    accelerate launch -q --config_file configs/demo/accelerate.yaml \\
        --num_cpu_threads_per_process 2 scripts/DPO_VL.py --config configs/demo/dpo.yaml \\
        --model_name_or_path runs/demo/seed0/stage2 --data_path runs/demo/seed0/pairs/train.jsonl \\
        --image_folder dataset --output_dir runs/demo/seed0/stage3
"""

import os
import sys

# torch reads it when imported: threads that wait for each other in a busy loop make a step ten
# times slower when another process needs the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# TRL reads it when imported: it would report the start of a run to the Hub.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cot_reward import errors
from cot_reward.dpo.settings import DpoSettings
from cot_reward.training.help_text import help_text


def main() -> int:
    about = __doc__ or ""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Before the imports below, which take seconds.
        print(help_text(DpoSettings, "DPOConfig", about), end="")
        return 0
    from cot_reward.dpo import build, run, trl_settings
    from cot_reward.dpo.load import load_train_and_eval

    settings, training, model_config = trl_settings.parse(description=about)
    train_rows, eval_rows = load_train_and_eval(settings, training, model_config)
    rows, held_out = (
        pairs and pairs.dataset(**settings.of_rows()) for pairs in (train_rows, eval_rows)
    )
    trainer = build.build_trainer(settings, training, model_config, rows, held_out)
    run.train(trainer, settings, training, model_config, len(train_rows.problems))
    return 0


if __name__ == "__main__":
    errors.run_script(main)
