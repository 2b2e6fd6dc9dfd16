"""Look at a training of stage 1 or 2 before LLaMA-Factory starts it:

    python scripts/check_sft.py configs/qwen_cold_start.yaml [KEY=VALUE ...] \\
        && llamafactory-cli train configs/qwen_cold_start.yaml [KEY=VALUE ...]

Tells rows and steps. Refuses a start model that is not whole, and an output folder whose training
is finished, or is of other data, model or settings, or cannot be continued: LLaMA-Factory would go
on there without a word, train nothing, and may lose the weights. scripts/chain.sh sees to this
itself. Exit status: 0 start, 2 do not.
"""

from dataclasses import dataclass, field
from pathlib import Path

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
    from cot_reward.errors import UserError
    from cot_reward.model_folder import fault_of_model
    from cot_reward.sft.chat_template import check_template
    from cot_reward.sft.config import data_files, describe, read_config
    from cot_reward.sft.guard import admit

    path = Path(settings.training[0])
    config = read_config(path, settings.training[1:])
    model = Path(config["model_name_or_path"])
    if model.is_dir() and (fault := fault_of_model(model)):
        raise UserError(f"{model}: {fault}")
    check_template(model, config.get("template"))
    files = data_files(config)
    described = describe(config, path, files, settings.processes)
    print(f"{config['output_dir']}: {admit(config, files)}; {described}")
    return 0


if __name__ == "__main__":
    run_script(main)
