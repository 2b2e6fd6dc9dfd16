"""Find the prompt that cold-start rows share, and write it as a template for the client.

    python scripts/derive_template.py dataset/ImageGen-CoT-Reward-5K/train_data.json
    python scripts/derive_template.py rows.jsonl more.json --task video_generation --out -

The template is what the prompts of all rows have in common, with the field {caption} in place of
the caption; give it to the client with --template. The prompt of a row is the first human turn of
`conversations`, else `problem` or `prompt`. When more than 1% of the rows deviate, nothing is
written. Exit status: 0 written, 2 not written.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cot_reward.errors import run_script
from cot_reward.rows.templates import write_template
from cot_reward.settings import parse


@dataclass(frozen=True)
class TemplateSettings:
    data: list[Path] = field(metadata={"help": "JSON or JSONL file", "positional": True})
    out: str = field(
        default="configs/template.txt",
        metadata={"help": "file to write; -: the template to stdout, the rest to stderr"},
    )
    task: str = field(default="image_generation", metadata={"help": "the task of the rows"})


def main() -> int:
    settings = parse(TemplateSettings, __doc__ or "")
    return write_template(settings.data, settings.task, settings.out)


if __name__ == "__main__":
    run_script(main)
