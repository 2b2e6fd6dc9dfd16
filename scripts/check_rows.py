"""Check training rows and their media before a training step.

python scripts/check_rows.py dataset/ImageGen-CoT-Reward-5K/train_data.json
python scripts/check_rows.py runs/stage2_infer/correct.jsonl --media-root dataset
"""

import os
from pathlib import Path

from cot_reward import errors, settings

DESCRIPTION = """\
Check SFT rows (conversations, images, videos) and DPO rows (problem, chosen, rejected, images,
videos) in JSON or JSONL files: fields and their types, one placeholder per medium, and the media.
Every image must lie below the media root and decode fully. Every video must lie below the media
root and not be empty; videos are not decoded. Exit status: 0 clean, 1 problems, 2 cannot check.
"""


def main() -> int:
    parser = settings.Parser(description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="JSON or JSONL file")
    parser.add_argument(
        *("--media-root", "--media_root", "--image-folder", "--image_folder"),
        type=Path,
        default=Path("dataset"),
        metavar="DIR",
        help="folder that media paths are relative to (default: dataset)",
    )
    parser.add_argument(
        "--show", type=int, default=10, metavar="N", help="problems to print (default: 10)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="decoding threads (default: %(default)s)",
    )
    arguments = parser.parse_args()
    for path in arguments.files:
        if not path.is_file():
            raise errors.UserError(f"{path}: no such file")
    if not arguments.media_root.is_dir():
        raise errors.UserError(
            f"{arguments.media_root}: no such folder; name the media root with --media-root"
        )
    if arguments.workers < 1:
        raise errors.UserError(f"--workers must be 1 or more, is {arguments.workers}")

    from cot_reward.rows import checking  # Pillow, which --help does not need

    try:
        report = checking.check_files(arguments.files, arguments.media_root, arguments.workers)
    except OSError as error:
        raise errors.UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    print(f"{report.rows:,} rows, {report.images:,} images, {report.videos:,} videos: ", end="")
    if not report.problems:
        print("clean")
        return 0
    print(f"{len(report.problems):,} problems")
    for reason, count in report.counts.items():
        print(f"{count:>8,}  {reason}")
    shown = report.problems[: max(arguments.show, 0)]
    print(f"The first {len(shown)}:" if len(shown) < len(report.problems) else "They are:")
    for problem in shown:
        print(f"  {problem.where}: {problem.reason}: {problem.message}")
    return 1


if __name__ == "__main__":
    errors.run_script(main)
