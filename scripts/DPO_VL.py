"""Stage 3: direct preference optimization on a model's own chains of thought.

    accelerate launch scripts/DPO_VL.py --config configs/dpo.yaml

    accelerate launch -q --config_file configs/demo/accelerate.yaml \\
        --num_cpu_threads_per_process 2 scripts/DPO_VL.py --config configs/demo/dpo.yaml \\
        --model_name_or_path runs/demo/seed0/stage2 --data_path runs/demo/seed0/pairs/train.jsonl \\
        --image_folder dataset --output_dir runs/demo/seed0/stage3
"""

import os
import sys

# Both are read when torch and trl are imported. Threads that wait for one another in a busy loop
# make a step ten times slower as soon as another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# TRL would tell the Hub that a run has begun.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cot_reward import settings


def main() -> int:
    from cot_reward.dpo import arguments, data, run

    script, training, model = arguments.parse()

    train_rows = data.load(script.data_path, script.image_folder)
    eval_rows = None
    if script.eval_data_path:
        eval_rows = data.load(script.eval_data_path, script.image_folder)

    if warning := data.template_warning(script.data_path, script.eval_data_path):
        print(warning, file=sys.stderr)

    trainer = run.build_trainer(script, training, model, train_rows, eval_rows)
    run.train(trainer, script, training, model)
    return 0


if __name__ == "__main__":
    settings.run(main)
