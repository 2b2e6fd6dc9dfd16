"""Write cold-start rows with a stronger model, behind any OpenAI-compatible address.

    OPENAI_API_KEY=... python scripts/distill.py --base-url https://HOST/v1 --model NAME \\
        --data dataset/mine/train/rows-00000.jsonl --rows-out dataset/mine/cold_start.jsonl

The client asks for chains of thought in both orders and judges them, as image_stream_gpt.py does
(all of its flags work; a stopped run goes on). Of each comparison that has a right and coherent
text in both orders one text an order is written: LLaMA-Factory's rows for stage 1, with as many
answers 1 as 2. The settings are those of configs/distill.yaml. Exit status: as the client's.
"""

import os
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.inference.cold_start import ColdStartSettings, check_orders, write_cold_start
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings


def main() -> int:
    asked, rows = settings.parse_several(
        (InferenceSettings, ColdStartSettings), __doc__ or "", config=Path("configs/distill.yaml")
    )
    if asked.shard:
        raise errors.UserError("--shard: ask the shares by image_stream_gpt.py, and gather them")
    check_orders(len(asked.asked_orders), rows)
    code = infer(asked, api_key=os.environ.get(asked.api_key_env, ""))
    if code or asked.dry_run:
        return code
    return write_cold_start(asked.out / "correct.jsonl", rows)


if __name__ == "__main__":
    errors.run_script(main)
