"""Find the prompt that cold-start rows share, and write it as a template for the client.

    python scripts/derive_template.py dataset/ImageGen-CoT-Reward-5K/train_data.json
    python scripts/derive_template.py rows.jsonl more.json --task video_generation --out -

Without --out it becomes configs/template.txt.
"""

from pathlib import Path

from cot_reward import errors, settings
from cot_reward.rows import templates

DESCRIPTION = """\
Find what the prompts of all rows have in common, and write it as a template with the field
{caption} where the caption stands; the client takes it with --template. Rows are in JSON or JSONL
files; their prompt is the first human turn of `conversations`, else `problem` or `prompt`. When
more than 1% of the rows deviate, nothing is written. Exit status: 0 written, 2 not written.
"""


def main() -> int:
    parser = settings.Parser(description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path, help="JSON or JSONL file")
    parser.add_argument(
        "--out",
        default="configs/template.txt",
        metavar="FILE",
        help="the template's file; -: the template to stdout, the rest to stderr "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--task",
        default="image_generation",
        metavar="NAME",
        help="what the rows are about (default: %(default)s)",
    )
    arguments = parser.parse_args()
    return templates.write_template(arguments.data, arguments.task, arguments.out)


if __name__ == "__main__":
    errors.run_script(main)
