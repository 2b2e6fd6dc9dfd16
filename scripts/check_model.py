"""Tell whether a trained model writes worse than the model that it was trained from:

    python scripts/check_model.py --before runs/eval_stage2/sampled \\
        --after runs/eval_stage3/sampled --out runs/check_stage3.json

Both are folders of scripts/image_stream_gpt.py over the same comparisons, with the same settings.
Compares accuracy, form, coherence, swaps and positions, each with its 95% interval over
comparisons. Exit status: 0 not worse, 4 worse, 2 the two cannot be compared.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cot_reward.errors import run_script
from cot_reward.settings import parse


@dataclass(frozen=True)
class ModelCheckSettings:
    before: Path = field(metadata={"help": "judged answers of the model that training began with"})
    after: Path = field(metadata={"help": "judged answers of the trained model"})
    out: Path = field(metadata={"help": "JSON file of the result"})


def main() -> int:
    settings = parse(ModelCheckSettings, __doc__ or "")
    from cot_reward.evaluation.watch import watch

    return watch(settings.before, settings.after, settings.out)


if __name__ == "__main__":
    run_script(main)
