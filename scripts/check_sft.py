"""Look at a training of stage 1 or 2 before LLaMA-Factory starts it:

    python scripts/check_sft.py configs/qwen_cold_start.yaml [KEY=VALUE ...] \\
        && llamafactory-cli train configs/qwen_cold_start.yaml [KEY=VALUE ...]

Tells rows and steps. Refuses a start model that is not whole, and an output folder whose training
is finished, or is of other data, model or settings, or cannot be continued: LLaMA-Factory would go
on there without a word, train nothing, and may lose the weights. scripts/chain.sh sees to this
itself. Exit status: 0 start, 2 do not.
"""

from dataclasses import dataclass, field

from cot_reward.errors import run_script
from cot_reward.settings import parse


@dataclass(frozen=True)
class SftCheckSettings:
    training: list[str] = field(
        metadata={"help": "YAML of LLaMA-Factory, then KEY=VALUE ...", "positional": True}
    )
    processes: int = field(default=1, metadata={"help": "GPUs that train"})


def main() -> int:
    settings = parse(SftCheckSettings, __doc__ or "")
    from cot_reward.sft.start import check_start

    print(check_start(settings.training, settings.processes))
    return 0


if __name__ == "__main__":
    run_script(main)
