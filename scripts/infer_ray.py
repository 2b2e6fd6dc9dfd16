"""Inference on all machines of a Ray cluster: the rows and the flags of image_stream_gpt.py.

    .envs/ray/bin/python scripts/infer_ray.py --base-url http://HOST:8000/v1
    .envs/ray/bin/python scripts/infer_ray.py --model runs/stage1 --gpus-per-server 1

The first asks servers that run elsewhere; the second starts a server on every GPU of the cluster.
A cluster: `.envs/ray/bin/ray start --head` on one machine, `.envs/ray/bin/ray start --address
HEAD:6379` on the others. The project, the data and --out must lie on storage that all of them
share, at the same path. What is killed goes on where it was, by the same command.
"""

import os
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.distributed.run import infer_on_ray
from cot_reward.distributed.settings import RaySettings
from cot_reward.inference.settings import InferenceSettings


def main() -> int:
    on_ray, chosen = settings.parse_several(
        (RaySettings, InferenceSettings), __doc__ or "", config=Path("configs/inference.yaml")
    )
    return infer_on_ray(on_ray, chosen, api_key=os.environ.get(chosen.api_key_env, ""))


if __name__ == "__main__":
    errors.run_script(main)
