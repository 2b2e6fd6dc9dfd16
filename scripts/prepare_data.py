"""Make this project's comparisons of preference data in any form.

    python scripts/prepare_data.py list                # published sets
    python scripts/prepare_data.py download NAME       # size and licence; with --accept the files
    python scripts/prepare_data.py look FILE ...       # columns, rows, labels, and what reads them
    python scripts/prepare_data.py convert FILE ...    # comparisons, with all media as files
        --map text=prompt first=path1 second=path2 label=human_pref --labels left=1 right=2 tie=tie
        --task image_generation --image-root dataset/mine/images --out dataset/mine/train
    python scripts/prepare_data.py convert FILE --config configs/data/pickapic.yaml
    python scripts/prepare_data.py check FILE ... --against HELD_OUT ...
                                                       # media, labels, duplicates, leaks
    python scripts/prepare_data.py pool FILE ... --pools sampling=5000 heldout=500
                                                       # disjoint pools, drawn by a seed
    python scripts/prepare_data.py register FILE --name NAME
                                                       # for LLaMA-Factory: dataset_info.json

Files are JSON, JSONL, Parquet, Arrow, CSV, TSV or tar files of WebDataset. Media are paths, or
stand in the rows. Videos become frames, which all later steps show. `COMMAND --help` shows flags.
Exit status: 0 done, 1 `check` found faults, 2 not done, 3 more bad rows than --max-bad-rows, or a
pool that is not full.
"""

import sys
from collections.abc import Callable, Sequence

from cot_reward.errors import UserError, nearest, run_script
from cot_reward.preparing.check import check
from cot_reward.preparing.convert import convert
from cot_reward.preparing.download import download
from cot_reward.preparing.look import look
from cot_reward.preparing.pool import pool
from cot_reward.preparing.register import register
from cot_reward.preparing.sets import print_sets
from cot_reward.preparing.settings import (
    CheckSettings,
    ConvertSettings,
    DownloadSettings,
    LookSettings,
    PoolSettings,
    RegisterSettings,
)
from cot_reward.settings import Settings, parse

Command = Callable[[Sequence[str]], int]


def _command(settings: type[Settings], run: Callable[[Settings], int]) -> Command:
    return lambda argv: run(parse(settings, __doc__ or "", argv=argv))


def _list(argv: Sequence[str]) -> int:
    if argv:
        raise UserError("`list` takes no further words")
    return print_sets()


COMMANDS: dict[str, Command] = {
    "list": _list,
    "download": _command(DownloadSettings, download),
    "look": _command(LookSettings, look),
    "convert": _command(ConvertSettings, convert),
    "check": _command(CheckSettings, check),
    "pool": _command(PoolSettings, pool),
    "register": _command(RegisterSettings, register),
}


def main() -> int:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if name not in COMMANDS:
        raise UserError(f"no command is called '{name}'.{nearest(name, COMMANDS)}")
    return COMMANDS[name](rest)


if __name__ == "__main__":
    run_script(main)
