"""Stage 3: direct preference optimization on a model's own chains of thought.

    accelerate launch scripts/DPO_VL.py --config configs/dpo.yaml

    accelerate launch -q --config_file configs/demo/accelerate.yaml \\
        --num_cpu_threads_per_process 2 scripts/DPO_VL.py --config configs/demo/dpo.yaml \\
        --model_name_or_path runs/demo/seed0/stage2 --data_path runs/demo/seed0/pairs/train.jsonl \\
        --image_folder dataset --output_dir runs/demo/seed0/stage3
"""

import os

# Both are read when torch and trl are imported. Threads that wait for one another in a busy loop
# make a step ten times slower as soon as another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# TRL would tell the Hub that a run has begun.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cot_reward import errors


def main() -> int:
    from cot_reward.dpo import build, run, settings
    from cot_reward.dpo.load import load_train_and_eval

    script, training, model = settings.parse()
    train_rows, eval_rows = load_train_and_eval(script, training, model)
    trainer = build.build_trainer(
        script, training, model, train_rows.dataset(), eval_rows and eval_rows.dataset()
    )
    run.train(trainer, script, training, model, len(train_rows.problems))
    return 0


if __name__ == "__main__":
    errors.run_script(main)
