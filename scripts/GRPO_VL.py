"""Stage 3 by GRPO: the model is sampled while it trains, and the judge is its reward.

    accelerate launch scripts/GRPO_VL.py --config configs/grpo.yaml

    accelerate launch -q --config_file configs/demo/accelerate.yaml \\
        --num_cpu_threads_per_process 2 scripts/GRPO_VL.py --config configs/demo/grpo.yaml \\
        --model_name_or_path runs/demo/seed0/stage2 --output_dir runs/demo/seed0/grpo \\
        --max_minutes 5
"""

import os
import sys

# torch reads it when imported: threads that wait for each other in a busy loop make a step ten
# times slower when another process needs the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# TRL reads it when imported: it would report the start of a run to the Hub.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cot_reward import errors
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.training.help_text import help_text


def main() -> int:
    about = __doc__ or ""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Before the imports below, which take seconds.
        print(help_text(GrpoSettings, "GRPOConfig", about), end="")
        return 0
    from cot_reward.grpo import build, run, trl_settings
    from cot_reward.grpo.load import load_train_and_eval

    settings, training, model_config = trl_settings.parse(description=about)
    train, held_out = load_train_and_eval(settings, training, model_config)
    trainer = build.build_trainer(settings, training, model_config, train, held_out)
    run.train(trainer, settings, training, model_config, train)
    return 0


if __name__ == "__main__":
    errors.run_script(main)
