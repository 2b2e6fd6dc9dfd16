"""Ask a running server for chains of thought about labelled comparisons, judge and save them.

    python scripts/image_stream_gpt.py                               # configs/inference.yaml
    python scripts/image_stream_gpt.py --data dataset/EvalMuse/pairwise/train_data.json \\
        --image-root dataset/EvalMuse/images --num-samples 4 --out runs/stage1_infer
"""

import os
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings


def main() -> int:
    chosen = settings.parse(InferenceSettings, __doc__ or "", config=Path("configs/inference.yaml"))
    return infer(chosen, api_key=os.environ.get(chosen.api_key_env, ""))


if __name__ == "__main__":
    errors.run_script(main)
