"""Have a trained model's chat template leave responses as they stand, where it rewrites them.

    python scripts/plain_chat.py runs/stage1

Qwen3.5's template opens <think> before a response and moves its line breaks; LLaMA-Factory trains
on the texts as they are. The chain calls this for every model that LLaMA-Factory has trained.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cot_reward.errors import UserError, run_script
from cot_reward.settings import parse


@dataclass(frozen=True)
class PlainChatSettings:
    models: list[Path] = field(metadata={"help": "folder of a model", "positional": True})


def main() -> int:
    models = parse(PlainChatSettings, __doc__ or "").models
    for model in models:
        if not (model / "config.json").exists():
            raise UserError(f"{model}: is not a model's folder (it has no config.json)")
    # Imported late: --help takes a fraction of a second.
    from cot_reward.training.plain_chat import TEMPLATE_FILE, make_plain

    for model in models:
        changed = make_plain(model)
        told = f"{TEMPLATE_FILE} is replaced" if changed else "its responses stay as they are"
        print(f"{model}: {told}")
    return 0


if __name__ == "__main__":
    run_script(main)
