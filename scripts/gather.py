"""Join the folders of all shares of an inference (image_stream_gpt.py --shard I/N) into one.

    python scripts/gather.py runs/infer/share-*  --out runs/stage1_infer

The result is the folder that one run without shares would have left; merger, evaluation and the
client itself take it as such. Nothing is asked: a share that is missing, unfinished, or asked with
other settings or weights is named. The data files must lie where the shares read them.
"""

from cot_reward import errors, settings
from cot_reward.inference.gather import GatherSettings, gather


def main() -> int:
    return gather(settings.parse(GatherSettings, __doc__ or ""))


if __name__ == "__main__":
    errors.run_script(main)
